"""`python -m harness`: what a launcher of several processes starts (`accelerate launch -m`)."""

from harness.cli import main

main()
