"""SCR and LSPR where the answer is known: python -m jobs.perturbation_lab --help."""

from studies.perturbation_lab import main

if __name__ == "__main__":
    main()
