#!/usr/bin/env python3
"""How much of its prompts a fleet of real llama.cpp engines reuses behind a gateway.

    perf/reuse.py --emberlane target/quick/emberlane [--policy price] [--seeds 5] [--order shuffled|rounds] [--stream]

Four engines (tests/engines/tiny_engine.py, random weights), 12 groups of 10 requests that share about 1,500 tokens, four
at a time. Every seed starts new engines. Prints the share of prompt tokens that the engines say they reused.
Run it with the Python of target/venv (`./x setup` makes it).
"""
import argparse, concurrent.futures, json, os, random, signal, socket, subprocess, sys, time, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = "the model cache request prefix of and to in that replica latency token is for decode with as on scheduler".split()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def text(rng, tokens):
    return " ".join(rng.choice(WORDS) + str(rng.randrange(100)) for _ in range(tokens // 4))


def wait_for(url, seconds=30):
    end = time.time() + seconds
    while time.time() < end:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{url} did not answer within {seconds} s")


def bodies(rng, order, stream, groups=12, each=10):
    shared = [text(rng, 1900) for _ in range(groups)]
    out = [(g, t) for t in range(each) for g in range(groups)]
    if order == "shuffled":
        rng.shuffle(out)
    for g, t in out:
        body = {"model": "m", "max_tokens": 8, "stream": stream, "messages": [
            {"role": "system", "content": shared[g]}, {"role": "user", "content": text(rng, 80)}]}
        if stream:
            body["stream_options"] = {"include_usage": True}
        yield json.dumps(body).encode()


def send(url, body):
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        raw = answer.read().decode()
    if raw.startswith("data:"):
        events = [json.loads(e[5:]) for e in raw.split("\n\n") if e.startswith("data: {")]
        usage = next(e["usage"] for e in reversed(events) if e.get("usage"))
    else:
        usage = json.loads(raw)["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def run(args, seed):
    rng = random.Random(seed)
    ports = [free_port() for _ in range(args.engines)]
    engine = [sys.executable, os.path.join(ROOT, "tests/engines/tiny_engine.py"), "serve", os.path.join(ROOT, "target/engines")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    children = [subprocess.Popen(engine + ["--port", str(port)], **quiet) for port in ports]
    try:
        for port in ports:
            wait_for(f"http://127.0.0.1:{port}/health")
        listen, admin = free_port(), free_port()
        replicas = [flag for port in ports for flag in ("--replica", f"http://127.0.0.1:{port}")]
        children.append(subprocess.Popen([args.emberlane, "serve", "--listen", f"127.0.0.1:{listen}", "--admin",
                        f"127.0.0.1:{admin}", "--policy", args.policy] + replicas, **quiet))
        wait_for(f"http://127.0.0.1:{admin}/readyz")
        url = f"http://127.0.0.1:{listen}/v1/chat/completions"
        start = time.time()
        with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
            counts = list(pool.map(lambda body: send(url, body), bodies(rng, args.order, args.stream)))
        seconds = time.time() - start
        if args.decisions:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/decisions?limit=500") as answer:
                for d in reversed(json.load(answer)):
                    missed = d["outcome"]["prompt_tokens"] - (d["outcome"]["cached_tokens"] or 0)
                    if missed > 500:
                        print(d["reason"], missed, d["outcome"]["held_ms"], d["why"])
        prompt, cached = map(sum, zip(*counts))
        return cached / prompt, seconds
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--emberlane", required=True)
    ap.add_argument("--policy", default="price")
    ap.add_argument("--engines", type=int, default=4)
    ap.add_argument("--seeds", type=int, default=5)
    ap.add_argument("--at-once", type=int, default=4)
    ap.add_argument("--order", choices=["shuffled", "rounds"], default="shuffled")
    ap.add_argument("--stream", action="store_true")
    ap.add_argument("--decisions", action="store_true", help="print the decisions whose prompts were computed")
    args = ap.parse_args()
    shares = []
    for seed in range(args.seeds):
        share, seconds = run(args, seed)
        shares.append(share)
        print(f"seed {seed}: {share:.1%} of prompt tokens reused, {seconds:.1f} s", flush=True)
    print(f"{args.policy}, {args.order}: min {min(shares):.1%}, mean {sum(shares) / len(shares):.1%}")


if __name__ == "__main__":
    main()
