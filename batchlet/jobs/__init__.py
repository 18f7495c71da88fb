"""Clusters that grow: jobs that are submitted to a batch system, by way of dask-jobqueue."""
