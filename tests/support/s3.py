"""A real S3 server (moto) on this machine that can be slow, fail, or lose connections."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import Request, urlopen

BUCKET = "finelap-test"


class S3:
    """An S3 server on a free port. `fault` decides about each request.

    fault: takes the method and the path; returns None, "503", "expired" (of the credentials), "drop" (closes the
        connection without an answer), "cut" (closes it in the middle of the body), or seconds to wait. `calls` lists
        the requests.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self.fault: Callable[[str, str], str | float | None] = lambda method, path: None
        self.calls: list[tuple[str, str]] = []
        self._server = make_server("127.0.0.1", 0, self._respond, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._require_keys(math.inf)
        self._server.shutdown()
        self._server.server_close()

    def create(self) -> dict[str, str]:
        """Creates the bucket and a user of it, and checks keys from then on. Returns environment variables."""
        import boto3

        options: dict[str, Any] = {"endpoint_url": self.address, "region_name": "us-east-1"}
        options |= {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
        self._require_keys(math.inf)
        # moto keeps everything in the process, whatever the server
        urlopen(Request(f"{self.address}/moto-api/reset", method="POST"), timeout=30).close()
        boto3.client("s3", **options).create_bucket(Bucket=BUCKET)
        iam = boto3.client("iam", **options)
        iam.create_user(UserName="finelap")
        policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
        iam.put_user_policy(UserName="finelap", PolicyName="s3", PolicyDocument=policy)
        key = iam.create_access_key(UserName="finelap")["AccessKey"]
        self._require_keys(0)
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @staticmethod
    def _require_keys(after: float) -> None:
        """Checks keys after that many requests."""
        from moto import settings

        settings.INITIAL_NO_AUTH_ACTION_COUNT = after

    def _respond(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.calls.append((method, path))
        fault = self.fault(method, path)
        if fault == "503":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"]
        if fault == "expired":
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"]
        if fault in ("drop", "cut"):
            connection = environ["werkzeug.socket"]
            if fault == "cut":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
            with contextlib.suppress(OSError):
                connection.shutdown(2)
            raise ConnectionError("injected")
        if isinstance(fault, float):
            time.sleep(fault)
        return self._app(environ, start_response)  # type: ignore[no-any-return]
