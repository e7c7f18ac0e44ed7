"""What is behind Horovod's names: `tfddl.horovod` only gives them out."""
