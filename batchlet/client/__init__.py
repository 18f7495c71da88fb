"""The client: enters and leaves a run, whatever backend the cluster lives on."""
