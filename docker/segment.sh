#!/bin/sh
# Segment /input into /output with the networks in /weights: checkpoint files (the mean of several), the folder of a run or of an
# experiment, or a results folder of nnU-Net. Arguments are keys of `umamba predict`, such as export=[dicom_seg].
set -eu
input="${INPUT:-/input}" output="${OUTPUT:-/output}" weights="${WEIGHTS:-/weights}"
for folder in "$input" "$output" "$weights"; do
    if [ ! -d "$folder" ]; then
        echo "Error: there is no folder $folder. Mount it: docker run -v \"\$PWD/FOLDER:$folder\" ..." >&2
        exit 2
    fi
done
if [ ! -w "$output" ]; then
    echo "Error: $output cannot be written by user $(id -u). Run with --user \"\$(id -u):\$(id -g)\"." >&2
    exit 2
fi
set -- "input=$input" "output=$output" previews=0 "$@"
checkpoint=""
for file in "$weights"/*.ckpt "$weights"/*.pth; do
    if [ -f "$file" ]; then
        checkpoint="${checkpoint:+$checkpoint,}$file"
    fi
done
case "$checkpoint" in
    "") set -- "checkpoint=$weights" "$@" ;;
    *,*) set -- "checkpoint=[$checkpoint]" "$@" ;;
    *) set -- "checkpoint=$checkpoint" "$@" ;;
esac
exec umamba predict "$@"
