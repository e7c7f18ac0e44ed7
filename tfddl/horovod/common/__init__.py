"""What Horovod's front ends have in common."""
