"""The service under a path of a real nginx: the page, its calls, the API reference, and redirects."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.docker.test_proxy import free_port, nginx

_CONFIG = """daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location /sounds/ {{
      proxy_pass {backend}/; proxy_set_header Host $host; proxy_set_header X-Forwarded-Prefix /sounds;
    }}
    location /deep/er/path/ {{ proxy_pass {backend}/; proxy_set_header Host $host; }}
    location /kept/ {{ proxy_pass {kept}; proxy_set_header Host $host; }}
  }}
}}
"""


@pytest.fixture
def proxy(run_server: Callable[..., str], tmp_path: Path) -> Iterator[str]:
    """The address of an nginx that serves the service under three paths, one of which it does not strip."""
    backend, port = run_server(allowed_hosts="*"), free_port()
    kept = run_server(allowed_hosts="*", root_path="/kept", data_dir=tmp_path / "kept")
    config = tmp_path / "nginx.conf"
    config.write_text(_CONFIG.format(folder=tmp_path, port=port, backend=backend, kept=kept), encoding="utf-8")
    running = subprocess.Popen([nginx(), "-c", str(config), "-p", str(tmp_path)])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                httpx.get(address)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        running.terminate()
        running.wait(10)


@pytest.mark.parametrize(("path", "servers"), [("/sounds/", "/sounds"), ("/deep/er/path/", "./"), ("/kept/", "/kept")])
def test_everything_works_under_a_path(proxy: str, path: str, servers: str) -> None:
    with httpx.Client(base_url=proxy, timeout=60) as client:
        base = f"{proxy}{path}"
        page = client.get(base)
        assert page.status_code == 200
        linked = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        linked = [link for link in linked if not link.startswith(("data:", "http"))]
        assert {"web/main.js", "web/style.css", "docs"} <= set(linked)
        for link in linked:
            assert client.get(urljoin(base, link)).status_code == 200, link
        for script in re.findall(r'from "(\./[^"]+)"', client.get(f"{base}web/main.js").text):
            assert client.get(urljoin(f"{base}web/", script)).status_code == 200, script
        reference = client.get(f"{base}docs").text
        assert "'openapi.json'" in reference and client.get(f"{base}openapi.json").json()["servers"] == [
            {"url": servers}
        ]
        assert client.get(f"{base}clips").json()["clips"] == []
        assert client.get(f"{base}clips/none").status_code == 404
        assert client.get(path.rstrip("/")).status_code == 301


def test_the_page_has_no_absolute_address(repo_dir: Path) -> None:
    """Every call of the page goes through `at` in api.js."""
    web = repo_dir / "app" / "web"
    assert not re.search(r'(?:src|href|action)="/', (web / "index.html").read_text(encoding="utf-8"))
    for script in web.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r'fetch\(\s*["`]/|\.(?:href|src)\s*=\s*["`]/|import\("/', text), script.name
