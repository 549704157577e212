"""A Hugging Face hub on this machine, with one model."""

import contextlib
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789" * 4


@contextlib.contextmanager
def serve(files, slow=""):
    """The URL of a hub that sends the files' bytes; slow: "headers" alone, or bytes that "drip"."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path.rpartition("/")[2], bytes(99))
            if self.path.startswith("/api/"):
                siblings = [{"rfilename": name, "size": len(files[name])} for name in files]
                content = json.dumps({"id": "x/y", "sha": COMMIT, "siblings": siblings}).encode()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            git = hashlib.sha1(b"blob %d\0%b" % (len(content), content))  # of a small file
            digest = git if self.path.endswith(".json") else hashlib.sha256(content)
            self.send_header("ETag", digest.hexdigest())
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD" and not slow:
                self.wfile.write(content)
            for _ in range(20) if self.command != "HEAD" and slow else ():
                self.wfile.write(b"a" * (slow == "drip"))
                time.sleep(0.05)

        do_HEAD = do_CONNECT = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # the client has left
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def connect(monkeypatch, url, cache):
    """Let huggingface_hub use the hub at `url`, and a folder as its cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
