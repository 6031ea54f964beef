#!/usr/bin/env bash
# The Skywork report in miniature, in some minutes on two cores: three sessions with STEM ramped in the last, a copy that
# has seen the test split, a burst of in-domain data, and what monitoring and leakage detection say of them.
#   examples/paper_in_miniature/run.sh [FOLDER]      given again, it goes on where it stopped
set -euo pipefail
export MINIATURE=${1:-runs/paper_in_miniature}
here=$(dirname "$0")
recipe=("$here/model.yaml" "$here/sessions.yaml")
sky() { "${PYTHON:-python}" -m megatron_sky "$@"; }
domains="en_web zh_web code papers stem"

# Texts of five domains; a second corpus by another seed gives exercises that no model here has seen.
if [ ! -f "$MINIATURE/tokenizer.model" ]; then
    sky data synthetic "$MINIATURE/corpus" --seed 7 --heldout-bytes 20000
    sky data synthetic "$MINIATURE/later" --seed 8 --train-bytes 50000 --heldout-bytes 20000
    sky tokenizer build "$MINIATURE"/corpus/train/*.jsonl --vocab-size 1024 --out "$MINIATURE/tokenizer.model"
fi
for domain in $domains; do
    for split in train validation; do
        sky data tokenize "$MINIATURE/corpus/$split/$domain.jsonl" --tokenizer "$MINIATURE/tokenizer.model" \
            --out "$MINIATURE/tokens/$split/$domain"
    done
done
sky data tokenize "$MINIATURE/corpus/test/stem.jsonl" --tokenizer "$MINIATURE/tokenizer.model" \
    --out "$MINIATURE/tokens/test/stem"

# The run, session by session; its copy goes from the end of stage 1b through a stage 2 with the test split in it.
sky train "${recipe[@]}" --dry-run
sky train "${recipe[@]}"
sky train "${recipe[@]}" --session stage-2 train.run_dir="$MINIATURE/leaked" sessions.stage-2.weights.stem_test=200 \
    checkpoint.init_from="$MINIATURE/run/checkpoints/step_0000260"
sky train "${recipe[@]}" "$here/burst.yaml"

# L_train, L_test, L_ref of both models (report, table 8), and perplexity per domain (table 6).
stem() { echo "$MINIATURE/$1/stem.jsonl"; }
sky eval leakage clean="$MINIATURE/run" leaked="$MINIATURE/leaked" --train "$(stem corpus/train)" \
    --test "$(stem corpus/test)" --reference "$(stem later/test)" --max-documents 300 --stride 64 --out "$MINIATURE/run/eval"
texts=()
for domain in $domains; do texts+=(--data "$domain=$MINIATURE/later/test/$domain.jsonl"); done
sky eval loss sessions="$MINIATURE/run" burst="$MINIATURE/burst" "${texts[@]}" \
    --max-chars 0 --stride 64 --out "$MINIATURE/run/eval"
sky report "$MINIATURE/run"
"${PYTHON:-python}" "$here/figures.py" "$MINIATURE"
