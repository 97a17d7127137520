#!/usr/bin/env python3
"""What the agent costs beside a llama.cpp server: memory and CPU time at 20 looks a second.

    ./x setup && cargo build --profile quick
    perf/agent_footprint.py [--binary target/quick/emberlane] [--hz 20] [--seconds 30] [--metrics URL]

Starts a real llama.cpp server with the tiny model (or looks at --metrics URL) and an agent, and reads the agent's
/proc/PID/{status,schedstat}. Fails when it takes more than 15 MB or 0.5 % of a core at up to 20 Hz.
"""
import argparse, os, pathlib, signal, socket, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
RSS_MB_MAX, CORE_PERCENT_MAX = 15.0, 0.5


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    sys.exit(f"waited {seconds} s in vain for {what}")


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


def cpu_seconds(pid):
    """Of all threads; from schedstat where there is one, for `stat` counts in hundredths of a second."""
    try:
        tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kb(pid):
    lines = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {key: int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM", "RssAnon", "RssFile", "Threads")}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--binary", default=str(ROOT / "target/quick/emberlane"))
    ap.add_argument("--hz", type=float, default=20)
    ap.add_argument("--seconds", type=float, default=30)
    ap.add_argument("--metrics", help="a page of an engine that runs already")
    a = ap.parse_args()
    processes = []
    try:
        metrics = a.metrics
        if not metrics:
            port = free_port()
            processes.append(subprocess.Popen(
                [ROOT / "target/venv/bin/python", ROOT / "tests/engines/tiny_engine.py", "serve", ROOT / "target/engines",
                 "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            metrics = f"http://127.0.0.1:{port}/metrics"
            wait_for("llama.cpp", lambda: answers(metrics))
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.bind(("127.0.0.1", 0))
        ear.settimeout(10)
        log = tempfile.TemporaryFile()
        agent = subprocess.Popen([a.binary, "agent", "--metrics", metrics, "--replica-url", "http://127.0.0.1:8000",
                                  "--gateway", f"127.0.0.1:{ear.getsockname()[1]}", "--hz", str(a.hz)], stderr=log)
        processes.append(agent)
        for _ in range(10):  # it is under way
            ear.recv(2048)
        began, before, beacons = time.monotonic(), cpu_seconds(agent.pid), 0
        while time.monotonic() - began < a.seconds:
            ear.recv(2048)
            beacons += 1
        took, used = time.monotonic() - began, cpu_seconds(agent.pid) - before
        memory = memory_kb(agent.pid)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM if process is processes[-1] else signal.SIGKILL)
            process.wait()
    rss, core = memory["VmRSS"] / 1024, 100 * used / took
    print(f"beacons        {beacons / took:.1f} a second for {took:.0f} s")
    print(f"CPU            {core:.2f} % of a core, {1e6 * used / max(beacons, 1):.0f} us a look")
    print(f"memory         {rss:.1f} MB (at most {memory['VmHWM'] / 1024:.1f}; anonymous {memory['RssAnon'] / 1024:.1f}, "
          f"of the binary {memory['RssFile'] / 1024:.1f}), {memory['Threads']} threads")
    if a.hz <= 20 and (rss > RSS_MB_MAX or core > CORE_PERCENT_MAX):
        sys.exit(f"more than {RSS_MB_MAX} MB or {CORE_PERCENT_MAX} % of a core")


if __name__ == "__main__":
    main()
