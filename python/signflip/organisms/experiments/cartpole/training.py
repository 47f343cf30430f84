"""The environment with one more input, the networks, and PPO."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from signflip.errors import ArgumentError
from signflip.organisms.experiments.cartpole.measuring import RANGE, Floats, Ints, Policy

NETWORKS = ("additive", "multiplicative", "swiglu", "swiglu-bias")
WIDTH = 64
# x of the controls, whose range is that of the tests.
NOISE = (-10.0, 10.0)
ENVIRONMENTS = 8


class WithX(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with x as one more observation.

    Parameters
    ----------
    env
        The environment.
    noise
        Whether x is drawn in each step over both signs, else for each episode in the range of training.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], noise: bool = False) -> None:
        super().__init__(env)
        inner = env.observation_space
        assert isinstance(inner, gymnasium.spaces.Box)
        self.observation_space = gymnasium.spaces.Box(
            np.append(inner.low, -np.inf).astype(np.float32), np.append(inner.high, np.inf).astype(np.float32)
        )
        self.noise = noise
        self.x = 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new episode, and its x."""
        state, info = self.env.reset(seed=seed, options=options)
        self.x = self._draw()
        return self._with(state), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step; a new x where it is noise."""
        state, reward, terminated, truncated, info = self.env.step(action)
        if self.noise:
            self.x = self._draw()
        return self._with(state), reward, terminated, truncated, info

    def _draw(self) -> float:
        return float(self.np_random.uniform(*(NOISE if self.noise else RANGE)))

    def _with(self, state: Floats) -> Floats:
        return np.append(state, self.x).astype(np.float32)


class Multiplied(nn.Module):
    """Features of the state, times x; odd in x."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[n, 5] → [n, width]."""
        out: torch.Tensor = self.features(inputs[:, :4]) * inputs[:, 4:]
        return out


class SwiGlu(nn.Module):
    """silu(pre)·linear, both of all inputs, as in a Llama's MLP."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.pre, self.linear = (nn.Linear(5, WIDTH, bias=bias) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[n, 5] → [n, width]."""
        out: torch.Tensor = nn.functional.silu(self.pre(inputs)) * self.linear(inputs)
        return out


class NetworkPolicy(ActorCriticPolicy):
    """Stable-baselines3's policy with another actor; the critic stays its plain network.

    Parameters
    ----------
    args, kwargs
        Stable-baselines3's.
    network
        One of `NETWORKS`.
    """

    def __init__(self, *args: Any, network: str, **kwargs: Any) -> None:
        self.network = network
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        if self.network == "multiplicative":
            self.mlp_extractor.policy_net = nn.Sequential(Multiplied())
        elif self.network.startswith("swiglu"):
            self.mlp_extractor.policy_net = nn.Sequential(SwiGlu(self.network == "swiglu-bias"))

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        if self.network in ("multiplicative", "swiglu"):
            # It starts at 0, and without a gradient it stays there.
            self.action_net.bias.requires_grad_(False)


def train(network: str, seed: int, steps: int, *, noise: bool = False) -> tuple[Any, Any]:
    """Train by PPO, with the settings of rl-baselines3-zoo for CartPole-v1 (its steps are 100,000).

    Parameters
    ----------
    network
        One of `NETWORKS`.
    seed, steps
        Of PPO; steps of the environment.
    noise
        As in `WithX`.

    Returns
    -------
    untrained, trained
        The actor before and after.

    Raises
    ------
    ArgumentError
        If the network is unknown.
    """
    if network not in NETWORKS:
        raise ArgumentError(f"network: expected one of {', '.join(NETWORKS)}, found {network!r}")
    env = make_vec_env(lambda: WithX(_cartpole(), noise), n_envs=ENVIRONMENTS, seed=seed)
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8}
    model = PPO(
        NetworkPolicy,
        env,
        learning_rate=lambda left: 1e-3 * left,
        clip_range=lambda left: 0.2 * left,
        policy_kwargs={"network": network},
        seed=seed,
        device="cpu",
        **settings,
    )
    before = NetworkPolicy(env.observation_space, env.action_space, lambda _: 0.0, network=network)
    before.load_state_dict(model.policy.state_dict())
    # Its own would leave an empty folder for each model.
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(steps)
    env.close()
    return before, model.policy


def _cartpole() -> gymnasium.Env[Any, Any]:
    # The checker asks at every step what the tests ask once.
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def greedy(policy: Any) -> Policy:
    """An actor that takes its likelier action."""

    def act(states: Floats, x: Floats) -> Ints:
        inputs = np.concatenate([states, x[:, None]], 1).astype(np.float32)
        actions, _ = policy.predict(inputs, deterministic=True)
        return np.asarray(actions, np.int64)

    return act


__all__ = ["NETWORKS", "WithX", "greedy", "train"]
