"""Container health check: exits with 0 if GET /health/ready returns 200, else with 1 and the reason on stderr.

Queries FINELAP_PORT (8080 by default) on the loopback interface. Standard library only, so that it starts quickly.
"""

from __future__ import annotations

import http.client
import os
import sys

_TIMEOUT = 10.0  # seconds


def main() -> int:
    port = int(os.environ.get("FINELAP_PORT") or 8080)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        body = response.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"no response on port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if response.status != 200:
        print(f"{response.status}: {body}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
