"""Whether clips of wan_tiny show what their captions say: `python eval/scenes.py videos=FOLDER`."""

from tapvideo.cli.scenes import main

if __name__ == "__main__":
    main()
