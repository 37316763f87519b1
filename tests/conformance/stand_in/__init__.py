"""What stands for packages that can't be installed where the tests run."""
