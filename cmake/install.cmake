# What `cmake --install` lays down: headers, libraries, pkg-config file, CMake package, licences.
include(CMakePackageConfigHelpers)

install(FILES ${PROJECT_SOURCE_DIR}/include/moenn.h ${PROJECT_SOURCE_DIR}/include/moenn.hpp
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS moenn moenn_static EXPORT moennTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE-MIT ${PROJECT_SOURCE_DIR}/LICENSE-APACHE
  DESTINATION ${CMAKE_INSTALL_DOCDIR})

# The pkg-config file finds its prefix from its own place, so that the tree can be moved and
# `cmake --install --prefix` works; that needs folders relative to the prefix.
foreach(kind LIB INCLUDE)
  if(IS_ABSOLUTE ${CMAKE_INSTALL_${kind}DIR})
    set(pc_${kind}DIR ${CMAKE_INSTALL_${kind}DIR})
  else()
    set(pc_${kind}DIR "\${prefix}/${CMAKE_INSTALL_${kind}DIR}")
  endif()
endforeach()
if(IS_ABSOLUTE ${CMAKE_INSTALL_LIBDIR})
  set(pc_PREFIX ${CMAKE_INSTALL_PREFIX})
else()
  file(RELATIVE_PATH up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  string(REGEX REPLACE "/$" "" up "${up}")
  set(pc_PREFIX "\${pcfiledir}/${up}")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/moenn.pc.in ${PROJECT_BINARY_DIR}/moenn.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/moenn.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moenn)
install(EXPORT moennTargets NAMESPACE moenn:: DESTINATION ${package_dir})
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/moennConfig.cmake.in ${PROJECT_BINARY_DIR}/moennConfig.cmake
  INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor release may break.
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/moennConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/moennConfig.cmake
  ${PROJECT_BINARY_DIR}/moennConfigVersion.cmake DESTINATION ${package_dir})
