"""The data of a run: from rows of text to the micro-batches of an optimizer step.

sources -> rendering -> encoding -> pairing -> windows
"""
