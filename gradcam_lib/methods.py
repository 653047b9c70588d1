"""The CAM family: each method is its equation.

A method is a function that returns one signed map an image; `explain` applies the ReLU. It asks for what it needs by
the names of its arguments, and nothing else is computed:

    A          (N, K, h, w)   the feature maps of the layer
    dA         (N, K, h, w)   the gradient of each image's score with respect to A
    z          (N,)           each image's score: the logit of its class
    w          (N, K)         the weights of the class in the linear layer behind global average pooling
    z_without  (N, K)         the score with feature map k set to zero
    z_through  (N, K)         the score of the image seen through feature map k, enlarged and scaled to [0, 1]
    tail       callable       (N, M, K, h, w) -> (N, M): the score of each image with its feature maps replaced
    x          (N, C, H, W)   the images
    dx         (N, C, H, W)   the gradient of each image's score with respect to x
    dx_guided  (N, C, H, W)   the same with every negative gradient stopped behind each activation function
    biases     list           the gradients of all biases, one (N, K, h, w) a layer: dz/db * b at every place

So this is a whole new method, ready for use:

    def mean_cam(A, dA):
        return (A * dA).mean(1)

    METHODS["mean-cam"] = mean_cam        # or, without a name: explain(model, images, method=mean_cam)
"""

from collections.abc import Callable

import torch
from torch.nn.functional import interpolate

__all__ = ["METHODS", "Method"]

Method = Callable[..., torch.Tensor]


def weighted_sum(weights, A):
    """Feature maps (N, K, h, w) summed with one weight each (N, K)."""
    return torch.einsum("nk,nkhw->nhw", weights, A)


def cam(A, w):
    """Class activation map (Zhou et al. 2016): the weights that the network itself gives the feature maps.

    Only where global average pooling and one linear layer follow the feature maps.
    """
    return weighted_sum(w, A)


def grad_cam(A, dA):
    """Grad-CAM (Selvaraju et al. 2017, eqs. 1 and 2): each feature map weighs its mean gradient."""
    alpha = dA.mean((2, 3))  # eq. 1
    return weighted_sum(alpha, A)  # eq. 2; its ReLU is the caller's


def grad_cam_plus_plus(A, dA):
    """Grad-CAM++ (Chattopadhay et al. 2018), for the score exp(z).

    The paper weighs a positive gradient g by alpha = g^2 / (2 g^2 + S g^3), with S the sum of the feature map, which
    is 1 / (2 + S g): written so, nothing is divided by the square of a small number. The gradient of exp(z) is
    exp(z) g; its factor exp(z) is the same for all of an image and left out.
    """
    S = A.sum((2, 3), keepdim=True)
    g = dA.clamp(min=0)
    w = (g / (2 + S * g)).sum((2, 3))
    return weighted_sum(w, A)


def xgrad_cam(A, dA):
    """XGrad-CAM (Fu et al. 2020): gradients averaged with the feature map itself as weight.

    A feature map whose sum is zero has no such average and gets the weight 0.
    """
    S = A.sum((2, 3))
    w = torch.where(S == 0, 0, (A * dA).sum((2, 3)) / torch.where(S == 0, 1, S))
    return weighted_sum(w, A)


def hires_cam(A, dA):
    """HiResCAM (Draelos and Carin 2020): the gradient is not averaged, each place keeps its own."""
    return (dA * A).sum(1)


def layer_cam(A, dA):
    """LayerCAM (Jiang et al. 2021): as HiResCAM, with only the positive gradients."""
    return (dA.clamp(min=0) * A).sum(1)


def principal(X):
    """The projection of (N, K, h, w) on the first right singular vector of each image's (h w, K) matrix: (N, h, w).

    A singular vector has no sign of its own. It is given the one that agrees with the sum over K.
    """
    rows = X.flatten(2).mT  # (N, h w, K), one row a place
    # One image that holds NaN would end the batch; its own map is NaN all the same.
    _, _, Vh = torch.linalg.svd(rows.nan_to_num(0, 0, 0), full_matrices=False)
    projected = (rows @ Vh[:, 0, :, None])[..., 0]
    sign = torch.where((projected * rows.sum(2)).sum(1, keepdim=True) < 0, -1.0, 1.0)
    return (sign * projected).unflatten(1, X.shape[2:])


def eigen_cam(A):
    """Eigen-CAM (Muhammad and Yeasin 2020): the first principal component of A, whatever the class.

    As in the paper, the feature maps are not centred.
    """
    return principal(A)


def eigen_grad_cam(A, dA):
    """EigenGrad-CAM (Gildenblat 2021): as Eigen-CAM, of the gradient times the feature maps."""
    return principal(dA * A)


def score_cam(A, z_through):
    """Score-CAM (Wang et al. 2020): a feature map weighs what the network sees through it.

    The score of a black image, which the paper subtracts, is the same for all k and cancels in the softmax.
    """
    return weighted_sum(z_through.softmax(1), A)


def ablation_cam(A, z, z_without):
    """Ablation-CAM (Desai and Ramaswamy 2020): a feature map weighs the score that is lost without it.

    The paper divides by z. So that a negative score does not turn the map over, this divides by |z|.
    """
    z = z[:, None]
    w = torch.where(z == 0, 0, (z - z_without) / z.abs())
    return weighted_sum(w, A)


def full_grad(x, dx, biases):
    """FullGrad (Srinivas and Fleuret 2019): the gradients of the input and of every bias, on one picture.

    The map has the resolution of the image.
    """

    def psi(gradient):  # magnitudes, scaled to [0, 1], enlarged, summed over channels
        m = gradient.abs()
        low, high = m.amin((1, 2, 3), keepdim=True), m.amax((1, 2, 3), keepdim=True)
        m = (m - low) / torch.where(high == low, 1, high - low)
        return interpolate(m.sum(1, keepdim=True), x.shape[2:], mode="bilinear", align_corners=False)[:, 0]

    return psi(dx * x) + sum(psi(b) for b in biases)


def guided_grad_cam(A, dA, dx_guided):
    """Guided Grad-CAM (Selvaraju et al. 2017, sec. 3.2): guided backpropagation, where Grad-CAM points.

    Of the three colours the largest magnitude counts (Simonyan et al. 2014). The map has the resolution of the image.
    """
    where = interpolate(
        grad_cam(A, dA).clamp(min=0)[:, None], dx_guided.shape[2:], mode="bilinear", align_corners=False
    )
    return (dx_guided * where).abs().amax(1)


METHODS: dict[str, Method] = {
    "cam": cam,
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_plus_plus,
    "xgrad-cam": xgrad_cam,
    "hires-cam": hires_cam,
    "layer-cam": layer_cam,
    "eigen-cam": eigen_cam,
    "eigengrad-cam": eigen_grad_cam,
    "score-cam": score_cam,
    "ablation-cam": ablation_cam,
    "full-grad": full_grad,
    "guided-grad-cam": guided_grad_cam,
}
