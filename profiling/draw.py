"""`python -m profiling.draw`: draw roofline.svg and loss_scale.svg again from the tables beside them."""

from profiling import loss_scale, loss_scale_edges, roofline


def main() -> None:
    roofline.draw(roofline.read(roofline.PICTURE.with_suffix(".csv")), roofline.PICTURE)
    loss_scale_edges.draw(*loss_scale_edges.read(loss_scale.PICTURE.with_suffix(".csv")), loss_scale.PICTURE)


if __name__ == "__main__":
    main()
