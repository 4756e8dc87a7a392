"""A Flask app as people write them: a form, a session, a redirect; it says which headers it was sent."""

from __future__ import annotations

from flask import Flask, jsonify, redirect, request, session
from werkzeug.wrappers import Response

app = Flask(__name__)
app.secret_key = "only for this test"  # noqa: S105
GREETING = "Hello one"


@app.route("/", methods=["GET", "POST"])
def home() -> str | Response:
    if request.method == "POST":
        session["name"] = request.form["name"]
        return redirect("/")
    name = session.get("name", "nobody")
    return f"<!doctype html><title>Flask</title><h1>{GREETING}, {name}</h1><form method=post><input name=name><button>Say</button></form>"


@app.get("/told")
def told() -> Response:
    return jsonify(dict(request.headers))
