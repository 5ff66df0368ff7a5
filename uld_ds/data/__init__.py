"""From rows of text to the micro-batches of an optimizer step.

sources -> rendering -> encoding -> pairing -> windows
"""
