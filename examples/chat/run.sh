#!/usr/bin/env bash
# The quickstart's model taught to answer questions in English and Chinese, in some minutes on two cores: all its weights
# and adapters alone, preferences on top, exported for transformers and peft.
#   examples/chat/run.sh [FOLDER]      given again, it goes on where it stopped
set -euo pipefail
export CHAT=${1:-runs/chat}
here=$(dirname "$0")
model=("$here/../quickstart/model.yaml" "$here/finetune.yaml")
sky() { "${PYTHON:-python}" -m megatron_sky "$@"; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# A base, and questions in its words. The chat template lies beside the tokenizer and goes along into checkpoints.
sky quickstart --out "$CHAT/quickstart"
"${PYTHON:-python}" "$here/make_data.py" "$CHAT/data"
cp "$CHAT/quickstart/tokenizer.model" "$here/chat_template.jinja" "$CHAT"
for name in train held_out; do
    for kind in "" _pairs; do
        sky data chat "$CHAT/data/$name$kind.jsonl" --out "$CHAT/tokens/$name$kind" --tokenizer "$CHAT/tokenizer.model" \
            --seq-length 128 --overwrite ${kind:+--pairs}
    done
done

# All weights, and adapters, side by side; then which of two answers is preferred, on top of the first.
sky train "${model[@]}" "$here/lora.yaml" > "$CHAT/lora.txt" 2>&1 &
sky train "${model[@]}"
wait $! || { cat "$CHAT/lora.txt"; exit 1; }
sky train "${model[@]}" "$here/dpo.yaml"

# Questions whose answers no model here has seen.
template="$CHAT/chat_template.jinja"
for run in full lora dpo; do
    base=$([ $run = dpo ] && echo full || echo quickstart/run)
    sky eval answers before="$CHAT/$base" "$run=$CHAT/$run" --data "$CHAT/data/held_out.jsonl" \
        --chat-template "$template" --max-new-tokens 20 --out "$CHAT/$run/eval"
    sky report "$CHAT/$run"
done
sky generate "$CHAT/lora" --prompts "$here/prompts.jsonl" --out "$CHAT/answers.jsonl" --max-new-tokens 20

# For transformers and peft.
[ -d "$CHAT/base-hf" ] || sky convert to-hf "$CHAT/quickstart/run" "$CHAT/base-hf"
[ -d "$CHAT/full-hf" ] || sky convert to-hf "$CHAT/full" "$CHAT/full-hf"
[ -d "$CHAT/lora-peft" ] || sky convert to-peft "$CHAT/lora" "$CHAT/lora-peft" --base-model "$CHAT/base-hf"
"${PYTHON:-python}" "$here/check.py" "$CHAT"
