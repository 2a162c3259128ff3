"""Whether the service in this container can work: exit code 0 if /health/ready answers 200, else 1 with a reason.

Asks FINELAP_PORT of this machine (8080 by default). Standard library only, and quick to start.
"""

from __future__ import annotations

import http.client
import os
import sys

_PATIENCE = 10.0  # seconds


def main() -> int:
    port = int(os.environ.get("FINELAP_PORT") or 8080)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        said = response.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if response.status != 200:
        print(f"{response.status}: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
