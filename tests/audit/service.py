"""PyPI as pip-audit asks it, on this machine: a proxy that is itself the host that is asked for, by its certificate."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

Answers = Mapping[str, object]

HOST = "pypi.org"


def make_certificate(folder: Path) -> Path:
    """A certificate for PyPI's name that nobody trusts but those who are told to, with its key in the same file."""
    file, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    subprocess.run([*command, "-keyout", key, "-out", file], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tls: ClassVar[ssl.SSLContext]
    answers: ClassVar[Answers]
    status: ClassVar[int]
    asked: ClassVar[list[str]]

    def do_CONNECT(self) -> None:
        if self.path != f"{HOST}:443":
            self.send_error(403)
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        except OSError:
            # Whoever asks does not trust the certificate.
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self) -> None:
        _, _, name, version, _ = self.path.split("/")
        self.asked.append(f"{name}=={version}")
        known = self.answers.get(f"{name}=={version}")
        body = json.dumps({"info": {}, "vulnerabilities": known}).encode()
        self.send_response(404 if known is None else self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def finish(self) -> None:
        super().finish()
        # The server closes the socket that it accepted, which is no longer this one.
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(certificate: Path, answers: Answers, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """The service, with the vulnerabilities of pins that it knows; gives its URL, as a proxy, and what was asked."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"tls": tls, "answers": answers, "status": status, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
