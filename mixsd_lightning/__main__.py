from mixsd_lightning.cli import main

main()
