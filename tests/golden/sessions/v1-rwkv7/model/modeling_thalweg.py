"""Needs: pip install thalweg"""
