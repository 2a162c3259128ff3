"""An RTSP server of a WAV file, from its beginning for each client: rtsp_server.py FILE CODEC PORT.

Run it with a Python that has GStreamer's RTSP server; on Debian python3 with the package gir1.2-gst-rtsp-server-1.0.
CODEC: opus (48 kHz), or pcmu (8 kHz) as many cameras send. Prints a line with the time when it serves, and one whenever
it begins to play.
"""

from __future__ import annotations

import sys
import time

ENCODERS = {
    "opus": "audio/x-raw,rate=48000,channels=1 ! opusenc ! rtpopuspay name=pay0 pt=97",
    "pcmu": "audio/x-raw,rate=8000,channels=1 ! mulawenc ! rtppcmupay name=pay0 pt=0",
}


def main() -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    file, codec, port = sys.argv[1:]
    source = f"filesrc location={file} ! wavparse ! audioconvert ! audioresample"
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {source} ! {ENCODERS[codec]} )")

    def configured(_: object, media: GstRtspServer.RTSPMedia) -> None:
        media.connect("new-state", lambda _, state: state == Gst.State.PLAYING and tell("playing"))

    factory.connect("media-configure", configured)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    server.get_mount_points().add_factory("/sound", factory)
    if not server.attach(None):
        sys.exit(f"port {port} is not free")
    tell("serving")
    GLib.MainLoop().run()


def tell(what: str) -> None:
    print(what, time.time(), flush=True)


if __name__ == "__main__":
    main()
