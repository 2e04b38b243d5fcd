#!/usr/bin/env bash
# Second, at most 5 minutes: bash benchmarks/first_light/run2.sh
. "$(dirname "$0")/head.sh"
read -r -a SIDES <<< "${SIDES:-7 15}"
SECTIONS=(SpeedOfLight MemoryWorkloadAnalysis Occupancy SchedulerStats WarpStateStats)
LINES_SHOWN=3 with ncu "ncu, passes over edges" 60 ncu.log --clock-control none \
  "${SECTIONS[@]/#/--section=}" -k 'regex:forward_kernel|backward_kernel' -s 6 -c 6 -- \
  "${CARD[@]}" one_step.py "$MODEL" "${SIDES[-1]}" 3
for math in float32 tf32; do
  stage "a million atoms, $math" 40 million.log \
    "${CARD[@]}" one_step.py "$MODEL" "${MILLION:-69}" 8 graph "$math"
done
LINES_SHOWN=40 stage "torch's operators" 60 operators.log "${CARD[@]}" operators.py
LINES_SHOWN=40 stage "LAMMPS, OpenMM, torch" 120 engines.log "${CARD[@]}" ../gpu.py --model "$MODEL" \
  --sides "${SIDES[@]}" --engines "${ENGINES:-lammps,openmm,torch,torch.compile}" --peers '' --teacher '' \
  --seconds "${ROW:-0.3}" --output "$OUT/engines"
if [ -z "$REHEARSAL" ]; then
  LINES_SHOWN=12 MLFF_TEST_GPU=1 stage "tests of LAMMPS and operators on the card" 80 tests2.log \
    "${PYTEST[@]}" "$REPO/tests/test_lammps_gpu.py" "$REPO/tests/test_cuda_messages.py"
  LINES_SHOWN=12 MLFF_TEST_GPU=1 stage "OpenMM's CUDA platform" 60 openmm.log \
    "${PYTEST[@]}" "$REPO/tests/test_openmm_cuda.py" -k "host_path or other_forces or path or network"
fi
say "done: $OUT"
