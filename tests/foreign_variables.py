"""The one list of variables by which what surrounds a test could reach it: launchers', Dask's, Batchlet's own.

Each is the beginning of a name.
"""

FOREIGN = (
    # Slurm, and what its programs take for options that were not given
    "SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SCANCEL_", "SINFO_", "SQUEUE_",
    # MPIs and their process managers
    "PMI_", "PMI2_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "MV2_", "I_MPI_",
    # other launchers: PALS (Cray), Flux, JSM (jsrun)
    "PALS_", "FLUX_", "JSM_",
    # jobs of other batch systems than Slurm
    "SGE_TASK_ID", "PBS_", "LSB_", "OAR_", "_CONDOR_",
    "DASK_", "BATCHLET_",
)  # fmt: skip
