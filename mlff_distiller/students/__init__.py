"""[4] [6] The student: its network, the files that hold it, and what evaluates those.

| file                          | what it holds                                                       |
|-------------------------------|---------------------------------------------------------------------|
| radial, repulsion, painn      | the network                                                         |
| student                       | ``StudentForceField``: network, reference energies, repulsion        |
| features, uncertainty         | environments as the network knows them; uncertainty of each atom    |
| rigidity                      | its numbers, as the student and the file hold them                  |
| file, export                  | reading and writing the exported ``.pt``                             |
| native_parameters             | the part of it that the native engine reads                         |
| checkpoint                    | the ``.ckpt`` of training                                           |
| versions                      | what older files say in other words                                 |
| stored, load                  | a student out of either kind of file                                |
| potential, portable           | evaluating an exported file from numpy arrays                       |

No other room opens a ``.pt`` or a ``.ckpt``.
"""

from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.student import StudentForceField

__all__ = ["PaiNN", "StudentForceField"]
