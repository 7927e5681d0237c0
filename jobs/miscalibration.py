"""Numerical study of miscalibration in a ranking funnel: python -m jobs.miscalibration --help."""

from studies.miscalibration import main

if __name__ == "__main__":
    main()
