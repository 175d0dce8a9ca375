"""The Hub as far as a push and a download need it, on this machine: its client is the real one."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


@contextmanager
def serving():
    """Yield the address of a server, and the files that it was sent, by 'KIND USER/NAME' and name."""
    repos, requests = {}, []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value, status=200, **headers):
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            requests.append((self.path, dict(self.headers)))
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if self.path == "/api/repos/create":
                about = json.loads(body)
                repos.setdefault(f"{about.get('type', 'model')}s {about.get('organization', 'me')}/{about['name']}", {})
                return self.answer({"url": f"{address}/datasets/me/{about['name']}"})
            _, _, kind, user, name, action, *_ = self.path.split("/")
            if action == "preupload":
                files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
                return self.answer({"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repos[f"{kind} {user}/{name}"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            where = f"{address}/{'' if kind == 'models' else kind + '/'}{user}/{name}"
            return self.answer({"commitUrl": f"{where}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

        def do_GET(self):
            path = self.path.partition("?")[0]
            if path.count("/") < 4:
                return self.answer({}, 404)
            if path.startswith("/api/"):
                _, _, kind, user, name, *rest = path.split("/")
                files = repos.get(f"{kind} {user}/{name}")
                if files is None:
                    return self.answer({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
                if rest[:1] == ["tree"]:
                    entries = [{"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40} for file in files]
                    return self.answer(entries, Content_Type="application/json")
                about = {"id": f"{user}/{name}", "sha": COMMIT, "private": False, "siblings": [{"rfilename": file} for file in files]}
                return self.answer(about, Content_Type="application/json")
            _, kind, user, name, _, _, *parts = path.split("/")
            content = repos[f"{kind} {user}/{name}"]["/".join(parts)]
            return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield address, repos, requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
