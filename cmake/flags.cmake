# The flags of everything compiled here, tests and tools too. They belong to this directory and
# those below, so that nothing of them reaches an application.
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_compile_options(-Wall -Wextra -Wpedantic -Wconversion -Wshadow)
if(MOENN_WERROR)
  add_compile_options(-Werror)
endif()

# Nothing here reads errno after a maths function or the floating-point exception flags; without
# these two, loops that call sqrtf or choose between values are not vectorised.
add_compile_options(-fno-math-errno -fno-trapping-math)

if(MOENN_SANITIZE)
  add_compile_options(
    -fsanitize=${MOENN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${MOENN_SANITIZE})
endif()
