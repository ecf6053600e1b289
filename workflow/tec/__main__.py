"""`python -m tec`."""

from tec.cli import main

raise SystemExit(main())
