"""Recomputes an evidence report from the audit log, with nothing of
Strongroom's: reads AUDIT_DIR and REPORT, prints what does not agree, a line
each. docs/evidence.md tells an auditor how to do the same."""

import base64
import collections
import glob
import hashlib
import json
import sys

audit_dir, report_file = sys.argv[1:]
evidence = json.load(open(report_file))
report = evidence["report"]
start, end = report["from"], report["to"]

lines, everything = [], []
for path in sorted(glob.glob(audit_dir + "/audit-*.jsonl")):
    for line in open(path, "rb").read().split(b"\n"):
        if line:
            record = json.loads(line)
            if record["time"] < end:
                lines.append(line)
                everything.append(record)


def tree(leaves):
    """The root of RFC 6962, section 2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + tree(leaves[:k]) + tree(leaves[k:])).digest()


records = [r for r in everything if r["time"] >= start]
OPERATIONS = {"put", "get", "head", "inspect", "list", "delete", "rewrap", "verify", "admin"}
ends = [r for r in records if r["event"] in OPERATIONS and r.get("phase") != "begin"]
denied = [r for r in records if r["event"] == "denied"]

activity = collections.defaultdict(lambda: [0, 0])
days = collections.defaultdict(collections.Counter)
used = collections.defaultdict(collections.Counter)
for r in records:
    days[r["time"][:10]]["records"] += 1
for r in ends:
    ok = r["result"] == "ok"
    size = {"put": r.get("plaintext_size") if ok else 0, "get": r.get("released")}.get(r["event"])
    entry = activity[r["peer"]["uid"], r["event"], r["result"]]
    entry[0] += 1
    entry[1] += size or 0
    day = days[r["time"][:10]]
    plural = {"put": "puts", "get": "gets", "delete": "deletes"}.get(r["event"])
    if ok and plural:
        day[plural] += 1
    elif not ok:
        day["refusals" if r.get("tamper") else "failures"] += 1
    if ok and "wrapping_key" in r:
        used[r["wrapping_key"]][r["event"]] += 1
for r in denied:
    activity[r["peer"]["uid"], r["operation"], "denied"][0] += 1
    days[r["time"][:10]]["denials"] += 1 + r.get("unrecorded", 0)

# What each key's objects are, if the log tells of all of them: the last put
# of a place, unless it was deleted since.
places = {}
for r in everything:
    if r["event"] in ("put", "delete") and r.get("phase") == "end" and r["result"] == "ok":
        place = r["bucket"], r["key"]
        if r["event"] == "put":
            places[place] = r
        else:
            places.pop(place, None)
objects = collections.Counter(r["wrapping_key"] for r in places.values())
stored = collections.Counter()
for r in places.values():
    stored[r["wrapping_key"]] += r["stored_size"]

begun = {r["seq"] for r in everything if r.get("phase") == "begin"}
ended = {r["begin"] for r in everything if "begin" in r}


def same(what, told, found):
    if told != found:
        print(f"{what}: the report says {told}, the log {found}")


same("format", report["format"], "strongroom.evidence/1")
same("records", report["log"]["records"], len(records))
same("first", report["log"].get("first_seq"), records[0]["seq"] if records else None)
same("last", report["log"].get("last_seq"), records[-1]["seq"] if records else None)
same("size", report["log"]["size"], len(lines))
same("root", report["log"]["root"], base64.b64encode(tree(lines)).decode())
same("open", report["log"]["open"], len(begun - ended))
same(
    "activity",
    [[a["uid"], a["operation"], a["result"], a["count"], a["bytes"]] for a in report["activity"]],
    [[*who, *what] for who, what in sorted(activity.items())],
)
NAMES = ["puts", "gets", "deletes", "failures", "denials", "refusals"]
same(
    "days",
    [[d["date"], *(d[name] for name in NAMES)] for d in report["days"]],
    [[date, *(day[name] for name in NAMES)] for date, day in sorted(days.items())],
)
same("denials", report["denials"]["total"], sum(1 + r.get("unrecorded", 0) for r in denied))
same("refusals", report["refusals"]["total"], sum(1 for r in ends if r.get("tamper")))
for key in report["keys"]:
    name = key["name"]
    same(f"{name}: puts", key["puts"], used[name]["put"])
    same(f"{name}: gets", key["gets"], used[name]["get"])
    same(f"{name}: objects", key["objects"], objects[name])
    same(f"{name}: bytes", key["stored_bytes"], stored[name])
compact = json.dumps(report, separators=(",", ":"), ensure_ascii=False).encode()
same("hash", evidence["report_sha256"], hashlib.sha256(compact).hexdigest())
