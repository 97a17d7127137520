#!/usr/bin/env python3
"""A real llama.cpp server with a tiny random-weight model, for tests and demos: no downloads.

    pip install -r tests/requirements.txt                     # or: ./x setup
    tiny_engine.py build DIR                                  # tokenizer + tiny.gguf, a second or two
    tiny_engine.py serve DIR --port 8101 [--slots 4] [--ctx 16384] [--alias m]

The server is llama.cpp's own HTTP server: /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages,
/v1/models, /health, /metrics, /slots. It reuses real KV prefixes and reports
usage.prompt_tokens_details.cached_tokens. Fewer slots, a smaller context and --no-host-cache make it forget sooner.
"""
import argparse, glob, json, os, sys, time

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, FF, CTX = 4096, 256, 2, 4, 2, 512, 32768
TEMPLATE = ("{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}{{ '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
SPECIAL = ["<|unk|>", "<|bos|>", "<|eos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]


def train_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    files = sorted(glob.glob("/usr/share/common-licenses/*") + glob.glob(os.path.dirname(os.__file__) + "/*.py"))[:300]
    texts = (open(f, errors="ignore").read()[:60000] for f in files if os.path.isfile(f))
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return json.loads(tok.to_str())


def build(directory):
    import gguf, numpy as np
    os.makedirs(directory, exist_ok=True)
    tok = train_tokenizer()
    with open(os.path.join(directory, "tokenizer.json"), "w") as f:
        json.dump(tok, f)
    vocab = tok["model"]["vocab"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]]
    tokens = [t for t, _ in sorted(vocab.items(), key=lambda kv: kv[1])]
    added = {a["id"] for a in tok["added_tokens"]}
    w = gguf.GGUFWriter(os.path.join(directory, "tiny.gguf"), "llama")
    w.add_name("tiny"); w.add_context_length(CTX); w.add_embedding_length(HIDDEN); w.add_block_count(LAYERS)
    w.add_feed_forward_length(FF); w.add_head_count(HEADS); w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5); w.add_rope_dimension_count(HIDDEN // HEADS); w.add_rope_freq_base(10000.0)
    w.add_vocab_size(len(tokens)); w.add_file_type(0)
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("gpt-2")
    w.add_token_list([t.encode() for t in tokens])
    w.add_token_types([3 if i in added else 1 for i in range(len(tokens))])
    w.add_token_merges(merges)
    w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_unk_token_id(0); w.add_pad_token_id(2)
    w.add_add_bos_token(False); w.add_chat_template(TEMPLATE)
    rng, n, kv = np.random.default_rng(0), len(tokens), KV_HEADS * HIDDEN // HEADS
    g = lambda *s: (rng.standard_normal(s) * 0.05).astype(np.float32)
    w.add_tensor("token_embd.weight", g(n, HIDDEN)); w.add_tensor("output.weight", g(n, HIDDEN))
    w.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for i in range(LAYERS):
        b = f"blk.{i}."
        for k, s in (("attn_q", (HIDDEN, HIDDEN)), ("attn_k", (kv, HIDDEN)), ("attn_v", (kv, HIDDEN)),
                     ("attn_output", (HIDDEN, HIDDEN)), ("ffn_gate", (FF, HIDDEN)), ("ffn_up", (FF, HIDDEN)),
                     ("ffn_down", (HIDDEN, FF))):
            w.add_tensor(b + k + ".weight", g(*s))
        w.add_tensor(b + "attn_norm.weight", np.ones(HIDDEN, np.float32))
        w.add_tensor(b + "ffn_norm.weight", np.ones(HIDDEN, np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    print("built", os.path.join(directory, "tiny.gguf"), os.path.getsize(os.path.join(directory, "tiny.gguf")), "bytes")


def serve(a):
    import xllamacpp as x
    p = x.CommonParams()
    p.model.path = os.path.join(a.directory, "tiny.gguf")
    p.port = a.port; p.n_ctx = a.ctx; p.n_parallel = a.slots; p.warmup = False
    p.cpuparams.n_threads = 1; p.cpuparams_batch.n_threads = 1
    wanted = dict(endpoint_metrics=True, endpoint_slots=True, use_jinja=True, model_alias={a.alias}, cont_batching=True,
                  cache_prompt=True, n_cache_reuse=0, kv_unified=a.kv_unified)
    if a.no_host_cache:
        wanted["cache_ram_mib"] = 0
    for key, value in wanted.items():
        try:
            setattr(p, key, value)
        except Exception as e:  # an option this build of the wheel does not know
            print("option not taken:", key, repr(e), file=sys.stderr)
    s = x.Server(p)
    print("listening", s.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    b = sub.add_parser("build"); b.add_argument("directory"); b.set_defaults(run=lambda a: build(a.directory))
    s = sub.add_parser("serve"); s.add_argument("directory"); s.add_argument("--port", type=int, default=8101)
    s.add_argument("--slots", type=int, default=4); s.add_argument("--ctx", type=int, default=16384)
    s.add_argument("--alias", default="m"); s.add_argument("--no-host-cache", action="store_true")
    s.add_argument("--kv-unified", action="store_true", help="slots share one context"); s.set_defaults(run=serve)
    args = ap.parse_args(); args.run(args)
