"""What the tests share, one of each.

students, systems    random networks and the atoms that they are asked about
arbiter              what autograd through the Python network says, on two ways
labelled             data sets made with EMT, and runs of a second on them
processes, commands  children in a clean environment; the command line
openmm, lammps       evaluating with these programs, or a skip
cuda_host, cuda_module  kernels under host emulation
graph_pes_files      files as graph-pes writes them
case_tables          the tables of cases in the plugins' READMEs
"""
