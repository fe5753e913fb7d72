"""Real ids among the invented ones, and an identity token that is fresh in each request."""

import os

import schemathesis

ENVIRONMENT = os.environ["KUBLER_ENVIRONMENT"]
TOKEN_FILE = os.environ.get("KUBLER_TOKEN_FILE")


def token():
    with open(TOKEN_FILE, encoding="ascii") as file:
        return file.read().strip()


def often(value):
    """Half of all values, the same half in each run."""
    return len(repr(value)) % 2 == 0


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    for name in ("id", "anything"):
        if path_parameters and name in path_parameters and often(path_parameters):
            path_parameters[name] = ENVIRONMENT
    return path_parameters


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict):
        # The shape is what is tested: nobody learns anything by waiting.
        # And 140.0 is a whole number to a schema, which no client of ours would write.
        seconds = body.get("wait_seconds")
        if type(seconds) in (int, float) and 0 <= seconds < 2**63 and seconds == seconds // 1:
            body["wait_seconds"] = min(int(seconds), 1)
        # Only a text: one of another type must be refused.
        if isinstance(body.get("profile"), str) and often(body):
            body["profile"] = "ci-small"
        if "subject_token" in body and TOKEN_FILE and often(body):
            body["subject_token"] = token()
            body["resource"] = ENVIRONMENT
    return body


@schemathesis.hook
def before_call(context, case, kwargs):
    """A key that rules out another is said in the document's words; its schema has none for that."""
    body = case.body
    if isinstance(body, dict) and body.get("attach") is True:
        if body.get("scope", "job") == "job":
            body["scope"] = "build"
        if isinstance(body.get("like"), str):
            body["like"] = None


if TOKEN_FILE:

    @schemathesis.auth(refresh_interval=30)
    class Token:
        def get(self, case, context):
            return token()

        def set(self, case, data, context):
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}
