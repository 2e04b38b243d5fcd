"""What Python says to the engine on a GPU."""

from mutants.mutation import Mutation

MUTATIONS = [
    Mutation(
        "rounding is ignored where there is no GPU",
        "ops/engine.py",
        'if math != "float32" and not on_gpu:',
        'if math == "float64" and not on_gpu:',
        "test_cuda_products.py",
        "a user thinks that tf32 was used",
    ),
    Mutation(
        "rounding without cuBLAS goes unsaid",
        "ops/engine.py",
        "if math in ROUNDED_PRODUCTS and not self._potential.cublas:",
        "if False:",
        "test_cuda_products.py",
        "errors of tf32 are bought for nothing",
    ),
    Mutation(
        "the calculator forgets how to round",
        "calculator.py",
        "            math=self.math,\n",
        "",
        "test_cuda_products.py",
        "ASE cannot ask for tf32",
    ),
    Mutation(
        "copies of the calculator round otherwise",
        "calculator.py",
        '            "math": self.math,\n            "uncertainty": self.uncertainty,\n        }\n        return _rebuild',
        '            "uncertainty": self.uncertainty,\n        }\n        return _rebuild',
        "test_cuda_products.py",
        "workers compute with another precision",
    ),
    Mutation(
        "LAMMPS is not told where cuBLAS is",
        "lammps.py",
        "    _load_mpi()\n    name_cublas()\n",
        "    _load_mpi()\n",
        "test_cuda_products.py",
        "lmp multiplies with the slow kernel, in silence",
    ),
    Mutation(
        "a choice of cuBLAS is overwritten",
        "cuda_libraries.py",
        "    if VARIABLE in os.environ:\n        return\n",
        "",
        "test_cuda_products.py",
        "MLFF_CUBLAS=off does nothing",
    ),
    Mutation(
        "a broken package nvidia stops LAMMPS",
        "cuda_libraries.py",
        "    except Exception:  # a broken package `nvidia` is no reason not to start LAMMPS\n        return\n",
        "    except KeyError:\n        return\n",
        "test_cuda_products.py",
        "lmp does not start",
    ),
]
