# The examples link the shared library and include the public header alone.
add_executable(train_tiny examples/train_tiny.c examples/stories.c)
target_link_libraries(train_tiny PRIVATE moenn m)

add_executable(train_tokenizer examples/train_tokenizer.c)
target_link_libraries(train_tokenizer PRIVATE moenn)
