#!/usr/bin/env bash
# First light, at most 5 minutes: bash benchmarks/first_light/run1.sh
. "$(dirname "$0")/head.sh"
read -r -a SIDES <<< "${SIDES:-3 7 15 32}"
stage "smoke" 60 smoke.log "${CARD[@]}" smoke.py "$MODEL"
stage "smoke, own products" 40 smoke_own.log "${CARD[@]}" smoke.py "$MODEL" no-cublas
if [ -z "$FAILED" ]; then # nothing is timed that is wrong
  LINES_SHOWN=45 stage "steps" 80 gpu.log "${CARD[@]}" ../gpu.py --model "$MODEL" \
    --sides "${SIDES[@]}" --engines '' --peers '' --teacher '' --seconds "${ROW:-0.5}" --output "$OUT"
  LINES_SHOWN=100 stage "kernels beside their bounds" 70 kernels.log \
    "${CARD[@]}" kernels.py "$MODEL" "$OUT/kernels.json" "${SIDES[@]:1}"
fi
# Whatever is not timed may share the card.
for tool in memcheck initcheck racecheck; do
  with compute-sanitizer $tool 90 $tool.log --tool $tool --error-exitcode 9 -- \
    "${CARD[@]}" one_step.py "$MODEL" 2 3 no-cublas &
done
if [ -z "$REHEARSAL" ]; then
  LINES_SHOWN=25 MLFF_TEST_GPU=1 stage "tests on the card" 100 tests.log "${PYTEST[@]}" \
    "$REPO/tests/test_cuda_engine.py" "$REPO/tests/test_cuda_ghosts.py" "$REPO/tests/test_cuda_products.py"
fi
wait
say "done: $OUT"
