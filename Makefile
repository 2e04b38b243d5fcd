# make demo | make test | make mutants | make install | make lint | make format | make docs | make cuda
# make openmm-torch | make clean
#
# Which demo:   make demo DEMO=molecule   (silicon, molecule, water: examples/demo_*.yaml)
#
# Everything is installed into .venv; nothing outside this folder is touched. To use another
# Python or torch:   make demo PYTHON=python3.12 TORCH=torch==2.14.1

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# The demo teachers; both carry everything they need, so nothing is downloaded later.
TEACHERS ?= sevenn==0.13.0 tblite==0.8.0
# Two more that only the tests need (Orb runs there with random weights).
TEST_TEACHERS ?= chgnet==0.4.2 "orb-models==0.5.5; python_version < '3.12'"
# make cuda: needs nvcc of the CUDA that this torch was built with, but no GPU.
CUDA_TORCH ?= torch==2.14.1
# What runs compiled code, less the emulation, which this build does not enter. All tests but those
# of teachers:  make cuda CUDA_TESTS=tests
CUDA_TESTS ?= $(addprefix tests/test_,cuda_build.py gpu_sass.py neighbors.py ops.py messages.py models.py \
                native_engine.py native_files.py export.py calculator.py engines.py) \
              $(filter-out %_gpu.py %_cuda.py,$(wildcard tests/test_lammps_*.py tests/test_openmm_*.py))
# The same on a card, where there is one: docs/testing.md.
CARD_TESTS ?= $(wildcard tests/test_cuda_*.py tests/test_openmm_*.py) \
              $(addprefix tests/test_,lammps_gpu.py contract.py limits.py smoothness.py)
# make openmm-torch: that wheel was compiled for that torch (with CUDA, but no GPU is needed).
OPENMM_TORCH ?= openmmtorch==1.5 torch==2.9.1 openmm==8.5.2 openmmml==1.7
OPENMM_TORCH_TESTS ?= $(filter-out %_build.py %_cuda.py,$(wildcard tests/test_openmm_*.py)) tests/test_contract.py
# Pinned, because what they accept changes from version to version.
LINT_TOOLS ?= ruff==0.17.6 mypy==2.4.1 clang-format==23.1.5 types-PyYAML
DEMO ?= silicon
PYTEST_ARGS ?=
# Processes that share the test files; 0: this one alone, as a debugger wants it.
TEST_JOBS ?= 2
PYTEST = -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder
MUTANTS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.mlff-installed
TEST_STAMP := $(VENV)/.mlff-test-teachers
LINT_STAMP := $(VENV)/.mlff-lint-tools
NATIVE := CMakeLists.txt pyproject.toml $(shell find mlff_distiller/csrc lammps_plugin openmm_plugin \
            -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name CMakeLists.txt)
EMULATION := $(shell find tests -name '*.cpp' -o -name '*.h')
CUDA_VENV := build/cuda/venv
CUDA_BIN := $(CUDA_VENV)/bin
OPENMM_TORCH_VENV := build/openmm-torch/venv
OPENMM_TORCH_BIN := $(OPENMM_TORCH_VENV)/bin

export OMP_NUM_THREADS ?= 2
export MPLBACKEND ?= Agg
# One quiet line a package instead of a page.
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install demo test mutants lint format docs cuda openmm-torch clean

install: $(STAMP)

$(STAMP): $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "mlff_distiller needs Python >= 3.10, got $$($(PYTHON) -V 2>&1); set PYTHON=python3.x"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null \
	  || { echo "a C++17 compiler is needed, found none; install g++ or clang, or set CXX"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "cannot make $(VENV): install the venv module of $(PYTHON) (Debian: python3-venv)"; exit 1; }
	@echo "[1/3] $(TORCH)"
	@$(BIN)/pip install --quiet "$(TORCH)"
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(VENV)/constraints.txt
	@echo "[2/3] engines, teachers, tools (LAMMPS, OpenMM, $(TEACHERS))"
	@$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt \
	  "scikit-build-core>=0.10" "pybind11>=2.12" cmake ninja "lammps[mpi]" openmm openmmml $(TEACHERS)
	@echo "[3/3] mlff_distiller (compiles the native engine and pair_style painn)"
	@$(BIN)/pip install --quiet --no-build-isolation --constraint $(VENV)/constraints.txt \
	  --editable ".[lammps,openmm,tensorboard,test]"
	@touch $@
	@echo "ready: $(BIN)/mlff-distiller --help"

# Status 1 is a verdict, not a failure: the student is there, but some gates refuse it.
demo: install
	$(BIN)/mlff-distiller distill examples/demo_$(DEMO).yaml || test $$? -eq 1

test: install $(TEST_STAMP)
	MLFF_NO_SKIPS=1 OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) $(PYTEST_ARGS)

# Wrong lines, one after the other, in a copy of the package: do the tests notice? About an hour; goes
# on where it stopped. make mutants MUTANTS="--only training --jobs 4"
mutants: install $(TEST_STAMP)
	$(BIN)/python tests/mutants/run.py --write $(MUTANTS)

$(TEST_STAMP): $(STAMP)
	@echo "teachers for the tests (chgnet, orb-models)"
	@$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt $(TEST_TEACHERS)
	@touch $@

lint: $(LINT_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h %.cu,$(NATIVE) $(EMULATION))

format: $(LINT_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.cpp %.h %.cu,$(NATIVE) $(EMULATION))

$(LINT_STAMP): $(STAMP)
	@$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt $(LINT_TOOLS)
	@touch $@

# What is made of the code: docs/configuration.md and the schemas for editors.
docs: install
	$(BIN)/python docs/generate.py

# The CUDA lane: everything compiled by nvcc, in an environment of its own, loaded and tested. Then
# what the kernels take, against the committed table.
cuda: $(CUDA_VENV)/.mlff-installed
	MLFF_EXPECT_CUDA=1 OMP_NUM_THREADS=1 $(CUDA_BIN)/python $(PYTEST) $(CUDA_TESTS) $(PYTEST_ARGS)
	@if $(CUDA_BIN)/python -c 'from mlff_distiller.ops.engine import gpu_count; raise SystemExit(not gpu_count())'; \
	  then MLFF_TEST_GPU=1 MLFF_EXPECT_CUDA=1 $(CUDA_BIN)/python -m pytest $(CARD_TESTS) $(PYTEST_ARGS); \
	  else echo "no GPU here: the tests on a card were skipped (docs/testing.md)"; fi
	$(CUDA_BIN)/python benchmarks/cuda_resources.py --check

$(CUDA_VENV)/.mlff-packages: Makefile
	@command -v nvcc >/dev/null \
	  || { echo "make cuda needs nvcc, found none in PATH; install the CUDA toolkit of $(CUDA_TORCH)"; exit 1; }
	@test -x $(CUDA_BIN)/python || $(PYTHON) -m venv $(CUDA_VENV)
	@echo "[1/3] $(CUDA_TORCH) with CUDA (5 GB)"
	@$(CUDA_BIN)/pip install --quiet "$(CUDA_TORCH)"
	@$(CUDA_BIN)/python -c 'import torch; assert torch.version.cuda, "this torch has no CUDA"; print("torch==" + torch.__version__.split("+")[0])' > $(CUDA_VENV)/constraints.txt
	@echo "[2/3] engines and tools"
	@$(CUDA_BIN)/pip install --quiet --constraint $(CUDA_VENV)/constraints.txt \
	  "scikit-build-core>=0.10" "pybind11>=2.12" cmake ninja "lammps[mpi]" openmm openmmml
# OpenMM's CUDA platform. It needs no more of NVIDIA's wheels than torch has brought.
	@$(CUDA_BIN)/pip install --quiet --no-deps "$$($(CUDA_BIN)/python -c 'from importlib.metadata import version; import torch; print("openmm-cuda-" + torch.version.cuda.split(".")[0] + "==" + version("openmm"))')"
	@touch $@

# A build folder of its own: scikit-build-core's is named by the Python alone.
$(CUDA_VENV)/.mlff-installed: $(CUDA_VENV)/.mlff-packages $(NATIVE)
	@echo "[3/3] mlff_distiller with MLFF_CUDA=ON"
	@MLFF_CUDA=ON $(CUDA_BIN)/pip install --quiet --no-build-isolation \
	  --constraint $(CUDA_VENV)/constraints.txt --config-settings=build-dir=build/cuda/build \
	  --editable ".[lammps,openmm,test]"
	@touch $@

# The openmm-torch lane: the OpenMM tests with `torch` among the back ends.
openmm-torch: $(OPENMM_TORCH_VENV)/.mlff-installed
	MLFF_NO_SKIPS=1 MLFF_EXPECT_OPENMM_TORCH=1 OMP_NUM_THREADS=1 \
	  $(OPENMM_TORCH_BIN)/python $(PYTEST) -k openmm $(OPENMM_TORCH_TESTS) $(PYTEST_ARGS)

$(OPENMM_TORCH_VENV)/.mlff-packages: Makefile
	@test -x $(OPENMM_TORCH_BIN)/python || $(PYTHON) -m venv $(OPENMM_TORCH_VENV)
	@echo "[1/2] $(OPENMM_TORCH) (7 GB)"
	@$(OPENMM_TORCH_BIN)/pip install --quiet $(OPENMM_TORCH) \
	  "scikit-build-core>=0.10" "pybind11>=2.12" cmake ninja
	@printf '%s\n' $(OPENMM_TORCH) > $(OPENMM_TORCH_VENV)/constraints.txt
	@touch $@

# A build folder of its own, as for make cuda; nothing here needs nvcc.
$(OPENMM_TORCH_VENV)/.mlff-installed: $(OPENMM_TORCH_VENV)/.mlff-packages $(NATIVE)
	@echo "[2/2] mlff_distiller"
	@MLFF_CUDA=OFF $(OPENMM_TORCH_BIN)/pip install --quiet --no-build-isolation \
	  --constraint $(OPENMM_TORCH_VENV)/constraints.txt --config-settings=build-dir=build/openmm-torch/build \
	  --editable ".[openmm,test]"
	@touch $@

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
