#!/usr/bin/env python3
"""The same trace through emberlane, nginx and smg, in front of real llama.cpp engines that are too small to hold it.

    ./x replay [--gateways emberlane,nginx,…] [--rounds 5] [--loads 2,3,4] [--trace FILE] [--record DIRECTORY]

Four engines (tests/engines/tiny_engine.py, random weights) of a few slots each, without a host cache. A round replays
the same requests through every gateway, in an order that each round begins with another, each time before new engines;
the share of prompt tokens that the engines say they found cached is what counts. Rounds differ in the requests, so
gateways are compared round by round: the mean of the differences, with the interval that holds it in 95 of 100 cases
(Student's t). The trace is either of
  sessions   coding-agent sessions (agent_sessions.jsonl.gz): so many users a replica, closed loop, think times scaled
  mooncake   timed requests of blocks with hash ids (Mooncake's JSONL), open loop
scaled down so that prompts fit. A prompt is made of words that are one token each and follow from what they stand for,
so equal prefixes are equal text, every engine must count as many tokens as were sent, and an answer that is not whole
ends the run. Gateways: emberlane (or emberlane:POLICY), nginx (round robin), nginx:least_conn, nginx:hash (by the
session's header), smg (cache_aware) and smg:POLICY. nginx opens a new connection for each request (see `start_gateway`).
Everything stays on the loopback interface.
"""
import argparse
import dataclasses
import datetime
import gzip
import http.client
import json
import os
import platform
import queue
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import compare

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
GATEWAYS = "emberlane,nginx,nginx:least_conn,nginx:hash,smg"
BLOCK_TOKENS = 512  # of Mooncake's hash ids
# Quantiles of Student's t for a two-sided interval of 95 %, by degrees of freedom from 1 on.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
             2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)
CACHED_WITHIN = 64  # the sessions' reusable prefixes are rounded down to blocks of so many tokens


# -- prompts ----------------------------------------------------------------------------------------------------------

class Words:
    """Words of the tiny model's vocabulary; with a space before it, each is one token."""

    def __init__(self, engines):
        with open(os.path.join(engines, "tokenizer.json")) as file:
            vocabulary = json.load(file)["model"]["vocab"]
        self.words = sorted(word[1:] for word in vocabulary if re.fullmatch("Ġ[a-z]{4,9}", word))

    def keep(self, engine):
        """Leaves out the words that `engine` makes more than one token of."""
        def is_one(word):
            return len(post(engine, "/tokenize", {"content": " " + word})["tokens"]) == 1
        self.words = [word for word in self.words if is_one(word)]
        assert len(self.words) > 500, "the tokenizer has too few words"

    def of(self, name, count):
        """`count` words that follow from `name`."""
        return random.Random(name).choices(self.words, k=count)


@dataclasses.dataclass
class Call:
    """A request: `messages` are (role, words); `after_s` is the think time, or the time since the start."""
    session: str
    turn: int
    messages: list
    output: int
    after_s: float
    reusable: int = 0

    @property
    def tokens(self):
        """As the template of the tiny model makes them: two around each message, one to open the answer."""
        return sum(len(words) + 2 for _, words in self.messages) + 1

    def body(self):
        messages = [{"role": role, "content": " " + " ".join(words)} for role, words in self.messages]
        return json.dumps({"model": "m", "max_tokens": self.output, "temperature": 0, "ignore_eos": True, "stream": True,
                           "stream_options": {"include_usage": True}, "messages": messages}).encode()


def cut(messages, tokens):
    """The messages up to `tokens` tokens; what is left of the last one is a message too. And its length."""
    kept, used = [], 0
    for role, words in messages:
        room = tokens - used - 2
        if room < 1:
            break
        kept.append((role, words[:room]))
        used += len(words[:room]) + 2
        if room < len(words):
            return kept, used - 1  # its closing token is not in the original at that place
    return kept, used


def agent_calls(record, words, scale, time_scale, turns_most):
    """The calls of one session of agent_sessions.jsonl.gz, scaled down."""
    name, calls, messages, before = record["session_id"], [], [], 0
    for turn, (tokens, output, reusable, think) in enumerate(record["turns"][:turns_most]):
        whole = turn > 0 and before - reusable <= CACHED_WITHIN
        target, held = max(8, round(tokens / scale)), 0
        if whole:
            held = calls[-1].tokens
            said = max(1, round(calls[-1].output * 0.9))
            messages = [*messages, ("assistant", words.of(f"{name} {turn} said", said))]
        elif turn > 0:
            messages, held = cut(messages, round(reusable / scale))
        rest = target - sum(len(of) + 2 for _, of in messages) - 3
        messages = [*messages, ("user", words.of(f"{name} {turn} asked", max(2, rest)))]
        calls.append(Call(name, turn, messages, max(2, round(output / scale)), think / time_scale, held))
        before = tokens
    return calls


def mooncake_call(number, record, words, scale, time_scale):
    """One request of Mooncake's trace, scaled down: each hash id is a block of words."""
    each, left, text = max(1, round(BLOCK_TOKENS / scale)), max(4, round(record["input_length"] / scale)), []
    for block in record["hash_ids"]:
        text += words.of(f"block {block}", min(each, left - len(text)))
    return Call(f"r{number}", 0, [("user", text)], max(2, round(record["output_length"] / scale)),
                record["timestamp"] / 1e3 / time_scale)


def read_lines(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        return [json.loads(line) for line in file]


def workload(arguments, words, load, seed):
    """What is sent in a round: scripts of calls for users who take one after the other, or one timed call each. `load` is
    users a replica, or a multiple of the trace's own rate."""
    dice, records = random.Random(seed), read_lines(arguments.trace)
    room = arguments.context // arguments.slots - 8
    fits = lambda calls: all(call.tokens + call.output < room for call in calls)
    if arguments.kind == "mooncake":
        first = dice.randrange(max(1, len(records) - arguments.requests))
        part = records[first:first + arguments.requests]
        made = [mooncake_call(number, record, words, arguments.scale, arguments.time_scale * load)
                for number, record in enumerate(part)]
        start, seen = made[0].after_s, set()
        for call, record in zip(made, part):
            call.after_s -= start
            known = next((at for at, block in enumerate(record["hash_ids"]) if block not in seen), len(record["hash_ids"]))
            call.reusable = min(call.tokens - 1, known * max(1, round(BLOCK_TOKENS / arguments.scale)) + 1) if known else 0
            seen.update(record["hash_ids"])
        return [[call] for call in made if fits([call])]
    made, wanted = [], round(arguments.replicas * load) * arguments.scripts
    while len(made) < wanted:
        for record in dice.sample(records, len(records)):
            copy = {**record, "session_id": f"{record['session_id']}.{seed}.{len(made)}"}
            calls = agent_calls(copy, words, arguments.scale, arguments.time_scale, arguments.turns)
            if len(calls) >= min(arguments.turns, 10) and fits(calls) and len(made) < wanted:
                made.append(calls)
    return made


# -- asking -----------------------------------------------------------------------------------------------------------

def post(port, path, value):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(value).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


class Broken(Exception):
    """An answer that is not whole."""


class Client:
    """One user: a connection that is kept, and what came back."""

    def __init__(self, port):
        self.connection, self.results = http.client.HTTPConnection("127.0.0.1", port, timeout=120), []

    def ask(self, call):
        body, start = call.body(), time.monotonic()
        self.connection.request("POST", compare.PATH, body, {
            "content-type": "application/json", "x-session-id": call.session})
        answer = self.connection.getresponse()
        if answer.status != 200:
            raise Broken(f"{call.session}/{call.turn}: status {answer.status}: {answer.read()[:500]}")
        first, usage, finish, is_done = None, None, None, False
        for line in answer:
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif line.startswith(b"data: {"):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    if first is None and (choice.get("delta") or {}).get("content"):
                        first = time.monotonic()
                    finish = choice.get("finish_reason") or finish
        end = time.monotonic()
        if not (is_done and usage and finish == "length" and usage["completion_tokens"] == call.output
                and usage["prompt_tokens"] == call.tokens):
            raise Broken(f"{call.session}/{call.turn}: {call.tokens} tokens for {call.output}: {is_done} {finish} {usage}")
        self.results.append({
            "session": call.session, "turn": call.turn, "at_s": start, "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            "reusable_tokens": call.reusable, "ttft_s": (first or end) - start, "e2e_s": end - start,
            "replica": answer.headers.get("x-emberlane-replica")})


def replay(port, scripts, users, is_timed):
    """Sends the scripts; all results, and the seconds it took."""
    waiting, broken, clients = queue.SimpleQueue(), [], [Client(port) for _ in range(users)]
    for script in scripts:
        waiting.put(script)
    start = time.monotonic()

    def run(client):
        while not broken:
            try:
                script = waiting.get_nowait()
            except queue.Empty:
                return
            for call in script:
                wait = call.after_s - (time.monotonic() - start if is_timed else 0.0)
                time.sleep(max(0.0, wait))
                try:
                    client.ask(call)
                except Exception as why:
                    broken.append(why)
                    return

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    results = sorted((result for client in clients for result in client.results), key=lambda result: result["at_s"])
    for result in results:
        result["at_s"] = round(result["at_s"] - start, 4)
    return results, time.monotonic() - start


# -- one run ----------------------------------------------------------------------------------------------------------

def start_engines(processes, ports, arguments):
    script = os.path.join(ROOT, "tests/engines/tiny_engine.py")
    for port in ports:
        host_cache = [] if arguments.host_cache else ["--no-host-cache"]
        processes.start(f"engine-{port}", [
            arguments.engine_python, script, "serve", arguments.engines, "--port", str(port), "--slots",
            str(arguments.slots), "--ctx", str(arguments.context), *host_cache])
    for port in ports:
        wait_for(f"http://127.0.0.1:{port}/health", processes, f"engine-{port}")


def wait_for(url, processes, name, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"{url} did not answer within {seconds} s\n{processes.log(name)}")


def start_gateway(processes, gateway, port, admin, backends, arguments):
    """Starts `gateway`, and returns its process id once it answers."""
    name, _, variant = gateway.partition(":")
    if name == "nginx":
        # A new connection for each request: llama.cpp's server closes kept ones when it likes, and nginx tries no POST
        # again, so some would end with a 502.
        rule = {"": "", "hash": "hash $http_x_session_id consistent;"}.get(variant, f"{variant};")
        servers = " ".join(f"server 127.0.0.1:{backend};" for backend in backends)
        pid = compare.nginx(processes, gateway, f"""upstream fleet {{ {rule} {servers} }}
            server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://fleet; proxy_http_version 1.1;
            proxy_buffering off; proxy_read_timeout 120s; }} }}""")
        ready = f"http://127.0.0.1:{port}/health"
    elif name == "smg":
        urls = [f"http://127.0.0.1:{backend}" for backend in backends]
        pid = processes.start(gateway, [
            os.path.join(os.path.dirname(sys.executable), "smg"), "launch", "--host", "127.0.0.1", "--port", str(port),
            "--worker-urls", *urls, "--policy", variant or "cache_aware", "--prometheus-host", "127.0.0.1",
            "--prometheus-port", str(admin), "--worker-startup-check-interval", "1", "--log-level", "warn",
            "--disable-tokenizer-autoload"])
        ready = f"http://127.0.0.1:{port}/readiness"
    else:
        replicas = [argument for backend in backends for argument in ("--replica", f"http://127.0.0.1:{backend}")]
        pid = processes.start(gateway, [
            arguments.emberlane, "serve", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}",
            "--policy", variant or "price", *replicas])
        ready = f"http://127.0.0.1:{admin}/readyz"
    wait_for(ready, processes, gateway)
    if name == "smg":
        wait_for_workers(port, len(backends))
    return pid


def wait_for_workers(port, count):
    """smg takes its workers up one after the other; ready is when all are."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/workers", timeout=5) as answer:
            workers = json.load(answer)["workers"]
        if sum(bool(worker.get("is_healthy")) for worker in workers) == count:
            return
        time.sleep(0.1)
    sys.exit(f"smg: not all workers are healthy: {workers}")


def run(arguments, gateway, scripts, load, directory):
    """Replays `scripts` through `gateway` before new engines: its figures, and each request's."""
    processes = compare.Processes(directory)
    try:
        ports = compare.free_ports(arguments.replicas + 2)
        backends, (port, admin) = ports[:-2], ports[-2:]
        start_engines(processes, backends, arguments)
        pid = start_gateway(processes, gateway, port, admin, backends, arguments)
        before = compare.cpu_seconds(pid)
        is_timed = arguments.kind == "mooncake"
        users = 64 if is_timed else round(arguments.replicas * load)
        try:
            results, seconds = replay(port, scripts, users, is_timed)
        except Broken as why:
            sys.exit(f"{gateway}: an answer is not whole: {why}\n{processes.log(gateway)}")
        used = compare.cpu_seconds(pid) - before
        decisions = None
        if gateway.startswith("emberlane"):
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/decisions?limit=10000", timeout=10) as answer:
                decisions = json.load(answer)
        assert len(results) == sum(map(len, scripts)), "an answer is missing"
        return {**figures(results, seconds, used), "seconds": seconds}, results, decisions
    finally:
        processes.stop()


def figures(results, seconds, cpu_s):
    total = sum(result["prompt_tokens"] for result in results)
    quantile = lambda key, q: sorted(result[key] for result in results)[int(q * (len(results) - 1))]
    return {
        "requests": len(results),
        "cached_share": sum(result["cached_tokens"] for result in results) / total,
        "reusable_share": sum(result["reusable_tokens"] for result in results) / total,
        "ttft_mean_ms": statistics.fmean(result["ttft_s"] for result in results) * 1e3,
        "ttft_p50_ms": quantile("ttft_s", 0.5) * 1e3, "ttft_p90_ms": quantile("ttft_s", 0.9) * 1e3,
        "e2e_p50_ms": quantile("e2e_s", 0.5) * 1e3, "e2e_p90_ms": quantile("e2e_s", 0.9) * 1e3,
        "requests_per_s": len(results) / seconds, "cpu_ms": cpu_s / len(results) * 1e3}


# -- the whole --------------------------------------------------------------------------------------------------------

def table(runs):
    """Means over the rounds as Markdown."""
    lines = ["| gateway | cached share | least | most | TTFT mean ms | p50 | p90 | e2e p50 ms | p90 | requests/s | "
             "CPU ms a request |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for gateway, rounds in runs.items():
        mean = {key: statistics.fmean(one[key] for one in rounds) for key in rounds[0]}
        shares = [one["cached_share"] for one in rounds]
        lines.append(f"| {gateway} | {mean['cached_share']:.1%} | {min(shares):.1%} | {max(shares):.1%} | "
                     f"{mean['ttft_mean_ms']:.0f} | {mean['ttft_p50_ms']:.0f} | {mean['ttft_p90_ms']:.0f} | "
                     f"{mean['e2e_p50_ms']:.0f} | {mean['e2e_p90_ms']:.0f} | {mean['requests_per_s']:.1f} | "
                     f"{mean['cpu_ms']:.2f} |")
    reusable = statistics.fmean(one["reusable_share"] for rounds in runs.values() for one in rounds)
    return "\n".join([*lines, "", f"An infinite cache would have found {reusable:.1%}."])


def interval(differences):
    """The mean, and how far the interval of 95 % reaches from it; `None` for a single one."""
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return mean, None
    quantile = STUDENT_T[count - 2] if count - 2 < len(STUDENT_T) else statistics.NormalDist().inv_cdf(0.975)
    return mean, quantile * statistics.stdev(differences) / count ** 0.5


def pairs(runs):
    """The first gateway against each other one, round by round, as Markdown."""
    first, *others = runs
    lines = [f"| {first} less … | cached share, points | rounds it is ahead | TTFT mean, ms |", "|---|---:|---:|---:|"]

    def shown(key, other, scale, digits):
        differences = [(one[key] - two[key]) * scale for one, two in zip(runs[first], runs[other])]
        mean, reach = interval(differences)
        more = "" if reach is None else f" ± {reach:.{digits}f}"
        return f"{mean:+.{digits}f}{more}", differences

    for other in others:
        share, differences = shown("cached_share", other, 100, 1)
        ttft, _ = shown("ttft_mean_ms", other, 1, 0)
        ahead = sum(difference > 0 for difference in differences)
        lines.append(f"| {other} | {share} | {ahead} of {len(differences)} | {ttft} |")
    return "\n".join(lines)


def load_words(arguments, load):
    return (f"{load:g} users a replica" if arguments.kind == "sessions"
            else f"{arguments.requests} timed requests at {load:g} times the trace's rate")


def record(arguments, by_load):
    date = datetime.date.today().isoformat()
    programs = argparse.Namespace(gateways=[gateway.partition(":")[0] for gateway in arguments.gateways])
    engine = subprocess.run([arguments.engine_python, "-c", "import importlib.metadata as m; print(m.version('xllamacpp'))"],
                            capture_output=True, text=True).stdout.strip()
    facts = {"date": date, "cpu": compare.cpu_model(), "cores": os.cpu_count(), "kernel": platform.release(),
             "versions": {**compare.versions(programs), "xllamacpp": engine}, "trace": os.path.basename(arguments.trace),
             **{key: getattr(arguments, key) for key in (
                 "kind", "replicas", "slots", "context", "host_cache", "loads", "scripts", "turns", "requests",
                 "scale", "time_scale", "rounds", "seed")}}
    os.makedirs(arguments.record, exist_ok=True)
    base = os.path.join(arguments.record, f"{date}-replay-{arguments.kind}")
    with open(base + ".json", "w") as out:
        json.dump({**facts, "figures": by_load}, out, indent=1)
        out.write("\n")
    said = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    answers = sum(one["requests"] for runs in by_load.values() for rounds in runs.values() for one in rounds)
    host_cache = "with their host cache" if arguments.host_cache else "without a host cache"
    with open(base + ".md", "w") as out:
        out.write(f"# A trace before real engines, {date}\n\n"
                  f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}; {said}.\n"
                  f"`./x replay`: {facts['trace']}, tokens scaled by 1/{arguments.scale:g} and times by "
                  f"1/{arguments.time_scale:g}; {arguments.replicas} llama.cpp replicas of {arguments.slots} slots in "
                  f"{arguments.context} tokens, {host_cache}; {arguments.rounds} rounds a load, new engines for each "
                  f"gateway in each. All {answers} answers were whole. nginx opens a new connection for each request "
                  f"(llama.cpp closes kept ones when it likes, and nginx tries no POST again).\n")
        for load, runs in by_load.items():
            out.write(f"\n## {load_words(arguments, load)}\n\n{table(runs)}\n\n{pairs(runs)}\n")
    return base + ".md"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--emberlane", default=os.path.join(ROOT, "target/quick/emberlane"), help="the binary")
    add("--engines", default=os.path.join(ROOT, "target/engines"), help="where the tiny model is")
    add("--engine-python", default=os.path.join(ROOT, "target/venv/bin/python"), help="the Python that has xllamacpp")
    add("--gateways", default=GATEWAYS, help="which, by comma; the first is compared with each other one")
    add("--kind", choices=["sessions", "mooncake"], default="sessions")
    add("--trace", help="default: that of the kind in perf/traces")
    add("--replicas", type=int, default=4)
    add("--slots", type=int, default=2, help="of each engine")
    add("--context", type=int, default=8192, help="tokens of each engine, over all slots")
    add("--host-cache", action="store_true", help="let engines keep what leaves a slot in memory")
    add("--loads", default="", help="users a replica (sessions, default 3), or multiples of the trace's rate (mooncake, "
        "default 1), by comma")
    add("--scripts", type=int, default=2, help="sessions each user has, on average (sessions)")
    add("--turns", type=int, default=20, help="most turns of a session (sessions)")
    add("--requests", type=int, default=600, help="how many (mooncake)")
    add("--scale", type=float, default=40, help="tokens of the trace to one of ours")
    add("--time-scale", type=float, default=20, help="seconds of the trace to one of ours")
    add("--rounds", type=int, default=5)
    add("--seed", type=int, default=0, help="of the first round")
    add("--record", default="", help="where the dated record goes")
    add("--keep", default="", help="directory for each request's figures and emberlane's decisions")
    arguments = parser.parse_args()
    names = {"sessions": "agent_sessions.jsonl.gz", "mooncake": "mooncake_conversation.jsonl.gz"}
    arguments.trace = arguments.trace or os.path.join(HERE, "traces", names[arguments.kind])
    arguments.gateways = arguments.gateways.split(",")
    arguments.loads = [float(load) for load in
                       (arguments.loads or {"sessions": "3", "mooncake": "1"}[arguments.kind]).split(",")]
    by_load, words = {}, Words(arguments.engines)
    with tempfile.TemporaryDirectory(prefix="emberlane-replay-") as directory:
        check_words(arguments, words, directory)
        for load in arguments.loads:
            by_load[load] = rounds(arguments, words, load, directory)
            print(f"\n{load_words(arguments, load)}\n\n{table(by_load[load])}\n\n{pairs(by_load[load])}", flush=True)
            if arguments.record:
                print(f"\nrecorded in {os.path.relpath(record(arguments, by_load))}", flush=True)


def rounds(arguments, words, load, directory):
    """All rounds at one load: each gateway's figures."""
    gateways = arguments.gateways
    runs = {gateway: [] for gateway in gateways}
    for number in range(arguments.rounds):
        seed = arguments.seed + number
        scripts = workload(arguments, words, load, seed)
        first = number % len(gateways)
        for gateway in gateways[first:] + gateways[:first]:
            one, results, decisions = run(arguments, gateway, scripts, load, directory)
            runs[gateway].append(one)
            print(f"load {load:g} round {number + 1}  {gateway:18} {one['cached_share']:6.1%} of "
                  f"{one['reusable_share']:.1%}, TTFT p50 {one['ttft_p50_ms']:5.0f} p90 {one['ttft_p90_ms']:5.0f} ms, "
                  f"{one['seconds']:.0f} s", file=sys.stderr, flush=True)
            if arguments.keep:
                os.makedirs(arguments.keep, exist_ok=True)
                with open(os.path.join(arguments.keep, f"{load:g}-{seed}-{gateway}.json"), "w") as out:
                    json.dump({"figures": one, "requests": results, "decisions": decisions}, out)
    return runs


def check_words(arguments, words, directory):
    """Starts an engine to ask it which words are one token."""
    processes = compare.Processes(directory)
    try:
        ports = compare.free_ports(1)
        start_engines(processes, ports, arguments)
        words.keep(ports[0])
    finally:
        processes.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
