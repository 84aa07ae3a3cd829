"""Labels from people, for images in a folder or texts in a file: a project on the disk, and the steps of its cycle.

The folder of a project::

    manifest.json       SHA-256 of project.json
    project.json        the images by index, the classes, labels that there were, and the options
    vocabulary.json     of texts: the words that have numbers
    journal/000001.json what happened, one file each and never changed: labels imported, samples asked, images that
                        came, trainings
    rounds/DIGEST/      the loop of these labels (see `prunefuse.experiment.trial`); its training goes on after a kill

The images and texts stay where they are, and nothing is written beside them.
"""
