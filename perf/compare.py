#!/usr/bin/env python3
"""nginx, smg, vllm-router and emberlane in front of the same four backends, in one run: what a request costs.

    ./x compare                                   # builds emberlane, installs the rest, runs this
    perf/compare.py --emberlane BINARY [--gateways nginx,smg,…] [--rounds 3] [--seconds 6] [--record DIRECTORY]

Bodies of 1 KB and 32 KB go to static backends (nginx with a fixed answer); event streams of 32 chunks, 2 ms apart,
come from mock engines. Each round measures every gateway once, in turn, so that noise meets all of them alike; the
table shows medians over the rounds. CPU is that of the gateway's processes alone, all threads and children, from
/proc/PID/stat. wrk sends from one thread over 16 connections. Everything stays on the loopback interface.
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = "/v1/chat/completions"
GATEWAYS = ("direct", "nginx", "smg", "vllm-router", "emberlane")
BACKENDS = 4
CONNECTIONS = 16
CHUNKS = 32
CASES = ("1 KB", "32 KB", "SSE")
ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9,
              "prompt_tokens_details": {"cached_tokens": 0}}}, separators=(",", ":"))
MODELS = '{"object":"list","data":[{"id":"m","object":"model","owned_by":"test"}]}'


def free_ports(count):
    """Ports nothing listens on, below the range the kernel takes for outgoing connections."""
    found = []
    for port in random.Random(os.getpid()).sample(range(20000, 32000), 12000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise SystemExit("no free ports")


# -- processes --------------------------------------------------------------------------------------------------------

class Processes:
    """Children of this run; all end with it."""

    def __init__(self, directory):
        self.directory, self.children = directory, []

    def start(self, name, command):
        log = open(os.path.join(self.directory, f"{name}.log"), "ab")
        child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        self.children.append((name, child))
        return child.pid

    def stop(self):
        for _, child in reversed(self.children):
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self.children.clear()

    def log(self, name):
        with contextlib.suppress(OSError):
            return open(os.path.join(self.directory, f"{name}.log"), errors="replace").read()[-3000:]
        return ""


def descendants(pid):
    """`pid` and every process below it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, open_ = [], [pid]
    while open_:
        found.append(open_.pop())
        open_.extend(children.get(found[-1], []))
    return found


def cpu_seconds(pid):
    """User and system time of `pid` and all below it, threads included, ended children too."""
    ticks = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            fields = open(f"/proc/{each}/stat").read().rsplit(")", 1)[1].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


# -- backends and gateways --------------------------------------------------------------------------------------------

def find(program):
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin") or \
        sys.exit(f"{program} is missing: run ./x compare, which installs it")


def nginx(processes, name, http):
    directory = os.path.join(processes.directory, name)
    os.makedirs(directory, exist_ok=True)
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};"
                         for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.getuid() == 0 else ""
    file = os.path.join(directory, "nginx.conf")
    with open(file, "w") as out:
        out.write(f"daemon off; {user} worker_processes 2; pid {directory}/pid; error_log stderr error;\n"
                  f"events {{ worker_connections 4096; }}\n"
                  f"http {{ access_log off; {temporary} client_max_body_size 64m; client_body_buffer_size 1m;\n"
                  f"keepalive_requests 1000000000; {http} }}\n")
    return processes.start(name, [find("nginx"), "-c", file])


def start_static(processes, ports):
    listen = " ".join(f"listen 127.0.0.1:{port};" for port in ports)
    nginx(processes, "backends", f"""server {{ {listen} default_type application/json;
        location = {PATH} {{ return 200 '{ANSWER}'; }}
        location = /v1/models {{ return 200 '{MODELS}'; }}
        location / {{ return 200 '{{}}'; }} }}""")


def start_engines(processes, ports, binary):
    for port in ports:
        processes.start(f"engine-{port}", [
            binary, "mock-engine", "--listen", f"127.0.0.1:{port}", "--model", "m", "--slots", "256",
            "--kv-tokens", "1000000", "--prefill-tokens-per-s", "0", "--decode-step-ms", "2"])


def start_gateway(processes, name, port, admin, backends, binary):
    """Starts one gateway; its process id."""
    urls = [f"http://127.0.0.1:{backend}" for backend in backends]
    bin_directory = os.path.dirname(sys.executable)
    peer = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls, "--policy", "cache_aware",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(admin), "--worker-startup-check-interval", "1"]
    if name == "nginx":
        servers = " ".join(f"server 127.0.0.1:{backend};" for backend in backends)
        return nginx(processes, "nginx", f"""upstream fleet {{ {servers} keepalive 64; keepalive_requests 1000000000; }}
            server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://fleet; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_buffering off; }} }}""")
    if name == "smg":
        return processes.start(name, [os.path.join(bin_directory, "smg"), "launch", *peer, "--log-level", "warn",
                                      "--disable-tokenizer-autoload"])
    if name == "vllm-router":
        return processes.start(name, [os.path.join(bin_directory, "vllm-router"), *peer])
    replicas = [argument for url in urls for argument in ("--replica", url)]
    return processes.start(name, [binary, "serve", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}",
                                  *replicas])


# -- requests ---------------------------------------------------------------------------------------------------------

def bodies(size, stream):
    """Prompts of 16 groups: the first half of each is its group's, the rest is its own."""
    words = "river engine north cache paper seven quiet light stone prefix garden token winter signal copper".split()
    dice = random.Random(size)
    prose = lambda length: " ".join(dice.choice(words) for _ in range(length // 5))[:length]
    room = size - 150
    shared = [prose(room // 2) for _ in range(16)]
    made = []
    for number in range(2048 if size < 8192 else 512):
        body = {"model": "m", "max_tokens": CHUNKS, "stream": stream, "messages": [
            {"role": "system", "content": shared[number % 16]},
            {"role": "user", "content": f"{number} {prose(room - room // 2)}"}]}
        made.append(json.dumps(body, separators=(",", ":")))
    return made


def ask(port, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body.encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def assert_answers(processes, name, port, body, stream):
    """Waits until the gateway answers, and checks that the answer is the backends' own."""
    start, why = time.monotonic(), None
    while time.monotonic() - start < 60:
        try:
            text = ask(port, body)
        except (urllib.error.URLError, OSError) as error:
            why = error
            time.sleep(0.3)
            continue
        if stream:
            chunks = text.count('"chat.completion.chunk"')
            assert chunks >= CHUNKS and "[DONE]" in text, f"{name}: {chunks} chunks: {text[-300:]}"
        else:
            assert json.loads(text)["choices"] == json.loads(ANSWER)["choices"], f"{name}: {text[:300]}"
        return
    sys.exit(f"{name} did not answer: {why}\n{processes.log(name)}")


def load(port, file, seconds):
    """Runs wrk: (requests, seconds, errors, p50 µs, p99 µs)."""
    command = [find("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s",
               "-s", os.path.join(HERE, "post.lua"), f"http://127.0.0.1:{port}", "--", file]
    out = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    line = next((line for line in out.stdout.splitlines() if line.startswith("FIGURES ")), None)
    if line is None:
        sys.exit(f"wrk failed: {out.stdout}{out.stderr}")
    count, micros, errors, median, tail = (float(word) for word in line.split()[1:])
    return count, micros / 1e6, int(errors), median, tail


def measure(name, pid, port, file, seconds):
    before = cpu_seconds(pid) if pid else 0.0
    count, elapsed, errors, median, tail = load(port, file, seconds)
    used = cpu_seconds(pid) - before if pid else 0.0
    if errors or not count:
        sys.exit(f"{name}: {errors} errors in {count:.0f} requests")
    return {"cpu_us": used / count * 1e6, "per_second": count / elapsed, "p50_ms": median / 1e3, "p99_ms": tail / 1e3}


# -- the run ----------------------------------------------------------------------------------------------------------

def run_phase(arguments, cases, directory):
    """Measures every gateway in front of one kind of backend: {case: {gateway: [figures of each round]}}."""
    stream = cases == ["SSE"]
    processes = Processes(directory)
    try:
        ports = free_ports(BACKENDS + 2 * len(arguments.gateways))
        backends, rest = ports[:BACKENDS], ports[BACKENDS:]
        if stream:
            start_engines(processes, backends, arguments.emberlane)
        else:
            start_static(processes, backends)
        files = {}
        for case in cases:
            made = bodies(32 * 1024 if case == "32 KB" else 1024, stream)
            files[case] = os.path.join(directory, case.replace(" ", "-") + ".txt")
            with open(files[case], "w") as out:
                out.write("\n".join(made) + "\n")
            for backend in backends:
                assert_answers(processes, "a backend", backend, made[0], stream)
        running = {}
        for name, port, admin in zip(arguments.gateways, rest[::2], rest[1::2]):
            if name == "direct":
                running[name] = (None, backends[0])
                continue
            pid = start_gateway(processes, name, port, admin, backends, arguments.emberlane)
            running[name] = (pid, port)
            for case in cases:
                assert_answers(processes, name, port, open(files[case]).readline().strip(), stream)
            load(port, files[cases[0]], 1)  # warm
        figures = {case: {name: [] for name in running} for case in cases}
        for number in range(arguments.rounds):
            for case in cases:
                for name, (pid, port) in running.items():
                    one = measure(name, pid, port, files[case], arguments.seconds)
                    figures[case][name].append(one)
                    print(f"round {number + 1}  {case:6} {name:12} {one['cpu_us']:8.1f} µs  "
                          f"{one['per_second']:9.0f}/s", file=sys.stderr, flush=True)
        return figures
    finally:
        processes.stop()


def medians(rounds):
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def table(figures):
    """The figures as Markdown."""
    lines = ["| case | gateway | CPU µs a request | requests/s | p50 ms | p99 ms | CPU against smg |",
             "|---|---|---:|---:|---:|---:|---:|"]
    for case, gateways in figures.items():
        smg = medians(gateways["smg"])["cpu_us"] if "smg" in gateways else None
        for name, rounds in gateways.items():
            one = medians(rounds)
            cpu = "–" if name == "direct" else f"{one['cpu_us']:.1f}"
            ratio = f"{one['cpu_us'] / smg:.2f}" if smg and name not in ("direct", "smg") else "–"
            lines.append(f"| {case} | {name} | {cpu} | {one['per_second']:.0f} | {one['p50_ms']:.2f} | "
                         f"{one['p99_ms']:.2f} | {ratio} |")
    return "\n".join(lines)


def versions(arguments):
    import importlib.metadata
    said = {"nginx": subprocess.run([find("nginx"), "-v"], capture_output=True, text=True).stderr.split("/")[-1].strip()}
    for package in ("smg", "vllm-router"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            said[package] = importlib.metadata.version(package)
    revision = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    said["emberlane"] = revision.stdout.strip()
    return {name: version for name, version in said.items() if name in arguments.gateways}


def cpu_model():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def record(arguments, figures):
    date = datetime.date.today().isoformat()
    facts = {"date": date, "cpu": cpu_model(), "cores": os.cpu_count(), "kernel": platform.release(),
             "versions": versions(arguments), "rounds": arguments.rounds, "seconds": arguments.seconds,
             "connections": CONNECTIONS, "chunks": CHUNKS}
    os.makedirs(arguments.record, exist_ok=True)
    base = os.path.join(arguments.record, f"{date}-compare")
    with open(base + ".json", "w") as out:
        json.dump({**facts, "figures": figures}, out, indent=1)
        out.write("\n")
    said = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    with open(base + ".md", "w") as out:
        out.write(f"# Gateways compared, {date}\n\n"
                  f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}; {said}.\n"
                  f"`./x compare`: medians of {arguments.rounds} interleaved rounds of {arguments.seconds} s, "
                  f"{CONNECTIONS} connections, {BACKENDS} backends; SSE is streams of {CHUNKS} chunks 2 ms apart.\n"
                  f"The load generator and the backends share the cores: compare CPU and ratios, not absolute rates.\n\n"
                  f"{table(figures)}\n")
    return base + ".md"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emberlane", required=True, help="the release binary (its mock engines are the SSE backends)")
    parser.add_argument("--gateways", default=",".join(GATEWAYS), help="which, by comma")
    parser.add_argument("--cases", default=",".join(CASES), help="which, by comma")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6, help="of each measurement")
    parser.add_argument("--record", default=os.path.join(HERE, "record"), help="where the dated record goes; '' for none")
    arguments = parser.parse_args()
    arguments.gateways = arguments.gateways.split(",")
    cases = arguments.cases.split(",")
    if unknown := [name for name in arguments.gateways if name not in GATEWAYS] + [c for c in cases if c not in CASES]:
        parser.error(f"unknown: {', '.join(unknown)}")
    figures = {}
    with tempfile.TemporaryDirectory(prefix="emberlane-compare-") as directory:
        for phase in (["1 KB", "32 KB"], ["SSE"]):
            if wanted := [case for case in phase if case in cases]:
                figures.update(run_phase(arguments, wanted, directory))
    print(table(figures))
    if arguments.record:
        print(f"\nrecorded in {os.path.relpath(record(arguments, figures))}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
