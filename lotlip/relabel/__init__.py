"""Long captions by multimodal language models: what is asked, who answers, what is kept."""
