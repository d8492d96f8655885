"""What does a model hold, and how does training move it?"""
