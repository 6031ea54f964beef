"""Held-out loss of the quickstart's model trained on a dirty corpus and on the same one cleaned by `corpus build`.

    python benchmarks/corpus_quality.py FOLDER [--tokens 245760] [--seeds 2] [--train-bytes 3000000]

Needs `pip install "megatron-sky[corpus,crawl]"`. The texts are the quickstart's (without code), dirtied as crawls are:
menus and footers of a few sites, pages that come again and again, spam, wrongly decoded pages, another language, lists
of numbers. Both corpora come out of `corpus build`: the raw one with every filter off. Both models see the same number
of tokens, with one tokenizer, trained on the raw texts. Held-out texts are clean and of the same grammars: what the
figures show is what this known dirt costs and how much of that the filters bring back, not what they do to the web.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

DOMAINS = ("en_web", "zh_web", "papers", "stem")
MENUS = {
    "en": "Home | News | Contact | Log in\n{}\nAll rights reserved by site {} of the net. Follow us on every channel.",
    "zh": "首页 | 新闻 | 联系我们 | 登录\n{}\n本站{}版权所有，转载请注明出处，并保留完整的链接。",
}
SPAM = ("Buy now! Free shipping, best price, click here. ", "立即购买 全国包邮 加微信 点击进入 优惠券 ")
GERMAN = "Das Wetter ist heute schön, und wir gehen mit den Kindern durch den Wald bis zum See hinunter. "
OFF = {
    "heuristics": {"enabled": False},
    "recurrence": {"enabled": False},
    "duplicates": {"exact": False, "url": False, "near": {"enabled": False}},
    "privacy": {"emails": False, "phones": False, "ids": False, "ips": False},
    "language": {"keep": ["zh", "en", "other"]},
}
ON = {
    "heuristics": {"zh": {"min_length": 20}, "en": {"min_length": 40}},
    "recurrence": {"max_documents": 150, "min_characters": 8, "min_length": 20, "partitions": 2},
    "duplicates": {"partitions": 2},
}


def sky(*arguments: object) -> None:
    command = [sys.executable, "-m", "megatron_sky", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def write_dirty(folder: Path, clean: dict[str, Path]) -> None:
    """One JSONL file a domain: its pages with menus and copies, and what is no text between them."""
    draw = random.Random(7)
    for domain, path in clean.items():
        texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        pages = [dirty(text, draw) for text in texts]
        for text in draw.sample(texts, len(texts) // 50):
            pages += [dirty(text, draw) for _ in range(25)]
        for _ in range(len(texts) // 4):
            number = draw.random()
            pages.append(
                draw.choice(SPAM) * draw.randint(10, 60)
                if number < 0.5
                else "锟斤拷烫烫烫" * draw.randint(20, 90)
                if number < 0.65
                else GERMAN * draw.randint(3, 9)
                if number < 0.8
                else "\n".join(f"{draw.randint(0, 99999)} {draw.randint(0, 99)}" for _ in range(60))
            )
        draw.shuffle(pages)
        lines = [json.dumps({"text": page}, ensure_ascii=False) for page in pages]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def dirty(text: str, draw: random.Random) -> str:
    language = "zh" if any("\u4e00" <= char <= "\u9fff" for char in text) else "en"
    return MENUS[language].format(text, draw.randint(1, 5))


def build(folder: Path, name: str, settings: dict) -> None:
    recipe = {
        "out": str(folder / name),
        "sources": [
            {"name": domain, "kind": "jsonl", "paths": [str(folder / "dirty" / f"{domain}.jsonl")]}
            for domain in DOMAINS
        ],
        "outputs": [{"name": domain, "sources": [domain]} for domain in DOMAINS],
        "tokens": {"tokenizer": str(folder / "tokenizer.model")},
    } | settings
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    sky("corpus", "build", folder / f"{name}.yaml")


def train(folder: Path, name: str, seed: int, args: argparse.Namespace, held_out: dict[str, Path]) -> dict[str, float]:
    """Bits per byte of each domain's held-out texts, by a model trained on one of the corpora."""
    summary = json.loads((folder / name / "corpus.json").read_text(encoding="utf-8"))
    sources = [
        {"name": domain, "path": str(folder / name / "tokens" / domain), "weight": 1.0}
        for domain in DOMAINS
        if domain in summary["outputs"]["text"]
    ]
    run = folder / f"run_{name}_{seed}"
    sky(
        "train",
        *(Path(__file__).parents[1] / "examples" / "quickstart" / part for part in ("model.yaml", "train.yaml")),
        f"train.run_dir={run}",
        f"train.tokens={args.tokens}",
        f"tokenizer.path={folder / 'tokenizer.model'}",
        f"data.train={json.dumps(sources)}",
        "validation.sets=[]",
        f"train.seed={seed}",
        f"data.seed={seed}",
        f"train.num_threads={args.threads}",
    )
    data = [word for domain, path in held_out.items() for word in ("--data", f"{domain}={path}")]
    sky("eval", "loss", run, *data, "--out", run / "eval")
    [model] = json.loads((run / "eval" / "loss.json").read_text(encoding="utf-8"))["models"]
    return {domain: model["domains"][domain]["bits_per_byte"] for domain in DOMAINS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=245_760)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train-bytes", type=int, default=3_000_000)
    args = parser.parse_args()
    folder = args.folder.absolute()
    (folder / "dirty").mkdir(parents=True, exist_ok=True)

    from megatron_sky.data.synthetic import write_corpus
    from megatron_sky.tokenizer.train import train_model, training_lines, write_model

    files = write_corpus(folder / "clean", train_bytes=args.train_bytes, heldout_bytes=20_000)
    write_dirty(folder / "dirty", {domain: files["train"][domain] for domain in DOMAINS})
    texts = "".join(path.read_text(encoding="utf-8") for path in sorted((folder / "dirty").glob("*.jsonl")))
    write_model(train_model(list(training_lines(texts)), 1024), folder / "tokenizer.model")
    sides = {"raw": OFF, "cleaned": ON}
    for name, settings in sides.items():
        build(folder, name, settings)
        outputs = json.loads((folder / name / "corpus.json").read_text(encoding="utf-8"))["outputs"]["text"]
        tokens = ", ".join(f"{domain} {output['tokens']:,}" for domain, output in outputs.items())
        print(f"{name}: {tokens} tokens", flush=True)
    held_out = {domain: files["validation"][domain] for domain in DOMAINS}
    losses = {name: [train(folder, name, seed, args, held_out) for seed in range(1, args.seeds + 1)] for name in sides}
    print(f"bits per byte of held-out texts after {args.tokens:,} tokens, mean of {args.seeds} seeds (spread)")
    print(f"{'domain':10}{'raw':>18}{'cleaned':>18}{'cleaned - raw':>16}")
    for domain in DOMAINS:
        raw, cleaned = ([one[domain] for one in losses[name]] for name in sides)
        shown = [f"{statistics.mean(one):.4f} ({max(one) - min(one):.4f})" for one in (raw, cleaned)]
        change = statistics.mean(cleaned) - statistics.mean(raw)
        print(f"{domain:10}{shown[0]:>18}{shown[1]:>18}{change:>16.4f}")


if __name__ == "__main__":
    main()
