"""An app that people write with Streamlit: what it keeps outlives a change of its text."""

import streamlit as st

st.session_state.setdefault("times", 0)
if st.button("Count"):
    st.session_state.times += 1
st.title(f"Hello one, {st.session_state.times}")
