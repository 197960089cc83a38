import gc
import unittest
import weakref

import moenn
import numpy as np
from common import Case

try:
    import torch
except ImportError:
    torch = None

try:
    import jax
except ImportError:
    jax = None


class TensorTest(Case):
    def test_zeros_of_every_dtype(self) -> None:
        for dtype in moenn.DType:
            if dtype != moenn.DType.FILE:
                with moenn.Tensor(self.device, (2, 3), dtype) as tensor:
                    self.assertEqual((tensor.shape, tensor.strides, tensor.ndim, tensor.elements),
                                     ((2, 3), (3, 1), 2, 6))
                    self.assertEqual(tensor.numpy().itemsize, moenn.dtype_bytes(dtype))
                    self.assertFalse(tensor.copy().any())
                    tensor.assign(np.ones((2, 3), tensor.numpy().dtype))
                    self.assertTrue(tensor.numpy().all())

    def test_scalar_and_empty(self) -> None:
        scalar = moenn.Tensor(self.device, ())
        scalar.assign(3.0)
        self.assertEqual(scalar.numpy().shape, ())
        self.assertEqual(float(scalar.numpy()), 3.0)
        self.assertEqual(moenn.Tensor(self.device, (2, 0)).numpy().shape, (2, 0))

    def test_numpy_views_in_place(self) -> None:
        tensor = moenn.Tensor(self.device, (4, 5))
        view = np.asarray(tensor)
        self.assertEqual(view.ctypes.data, tensor.address)
        view[1, 2] = 7
        self.assertEqual(tensor.copy()[1, 2], 7)
        self.assertEqual(np.asarray(tensor, np.float64).dtype, np.float64)
        self.assertNotEqual(np.array(tensor).ctypes.data, tensor.address)

    def test_numpy_view_outlives_the_tensor_and_the_device(self) -> None:
        with moenn.Device(threads=1) as device:
            tensor = moenn.Tensor(device, (1000,))
            tensor.assign(np.arange(1000.0))
            view = tensor.numpy()
            tensor.close()
            gc.collect()
            self.assertEqual(device.memory.current_bytes, 4000)
        np.testing.assert_array_equal(view, np.arange(1000.0))
        del view

    def test_slice_shares(self) -> None:
        tensor = moenn.Tensor(self.device, (4, 6))
        part = tensor.slice(1, 2, 5)
        tensor.close()
        part.assign(np.ones((4, 3)))
        self.assertEqual(part.strides, (6, 1))
        np.testing.assert_array_equal(part.numpy(), np.ones((4, 3)))
        with self.assertRaises(moenn.ArgumentError):
            part.slice(2, 0, 1)

    def test_bfloat16(self) -> None:
        tensor = moenn.Tensor(self.device, (3,), moenn.DType.BF16)
        bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)  # 1, -2, infinity
        tensor.assign(bits)
        np.testing.assert_array_equal(tensor.numpy(), bits)
        for values in (tensor.float32(), np.asarray(tensor, np.float32)):
            np.testing.assert_array_equal(values, np.array([1, -2, np.inf], np.float32))
        with self.assertRaises(moenn.ArgumentError):
            tensor.assign([1.0, 2.0, 3.0])

    def test_from_numpy_shares_and_keeps(self) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3).T
        alive = weakref.ref(array)
        tensor = moenn.Tensor.from_numpy(self.device, array)
        self.assertEqual((tensor.shape, tensor.strides), ((3, 2), (1, 3)))
        array[2, 1] = 50
        self.assertEqual(tensor.copy()[2, 1], 50)
        view = tensor.numpy()
        del array
        tensor.close()
        gc.collect()
        self.assertIsNotNone(alive())
        self.assertEqual(view[2, 1], 50)
        del view
        gc.collect()
        self.assertIsNone(alive())

    def test_from_numpy_bits_of_bfloat16(self) -> None:
        bits = np.full(4, 0x4000, np.uint16)
        tensor = moenn.Tensor.from_numpy(self.device, bits, moenn.DType.BF16)
        np.testing.assert_array_equal(tensor.float32(), np.full(4, 2, np.float32))

    def test_from_numpy_refuses(self) -> None:
        read_only = np.zeros(3, np.float32)
        read_only.flags.writeable = False
        for array in (read_only, np.zeros(3, np.complex64), np.zeros(3, np.uint16), [1.0]):
            with self.assertRaises(moenn.ArgumentError):
                moenn.Tensor.from_numpy(self.device, array)
        with self.assertRaises(moenn.ArgumentError):
            moenn.Tensor.from_numpy(self.device, np.zeros(3, np.float32)[::-1])

    def test_from_address(self) -> None:
        array = np.arange(6, dtype=np.int32)
        tensor = moenn.Tensor.from_address(self.device, array.ctypes.data, (2, 2), moenn.DType.I32,
                                           (3, 1))
        np.testing.assert_array_equal(tensor.copy(), [[0, 1], [3, 4]])

    def test_dlpack_to_numpy_and_back(self) -> None:
        tensor = moenn.Tensor(self.device, (2, 2))
        self.assertEqual(tensor.__dlpack_device__(), (1, 0))
        array = np.from_dlpack(tensor)
        self.assertEqual(array.ctypes.data, tensor.address)
        source = np.arange(4, dtype=np.int64)
        imported = moenn.Tensor.from_dlpack(self.device, source)
        self.assertEqual((imported.dtype, imported.address), (moenn.DType.I64, source.ctypes.data))
        tensor.close()
        self.assertFalse(array.any())  # the array keeps the memory
        again = moenn.Tensor.from_dlpack(self.device, imported)
        self.assertEqual(again.address, source.ctypes.data)

    def test_dlpack_capsule_is_used_once_and_gives_back(self) -> None:
        with moenn.Device(threads=1) as device:
            tensor = moenn.Tensor(device, (100,))
            capsule = tensor.__dlpack__()
            tensor.close()
            self.assertEqual(device.memory.current_bytes, 400)
            again = moenn.Tensor.from_dlpack(device, capsule)
            with self.assertRaises(moenn.ArgumentError):
                moenn.Tensor.from_dlpack(device, capsule)
            again.close()
            self.assertEqual(device.memory.current_bytes, 0)
            unused = moenn.Tensor(device, (100,)).__dlpack__()
            self.assertEqual(device.memory.current_bytes, 400)
            del unused
            self.assertEqual(device.memory.current_bytes, 0)

    def test_dlpack_refuses(self) -> None:
        tensor = moenn.Tensor(self.device, (2,))
        with self.assertRaises(BufferError):
            tensor.__dlpack__(copy=True)
        with self.assertRaises(BufferError):
            tensor.__dlpack__(dl_device=(2, 0))
        with self.assertRaises(moenn.ArgumentError):
            moenn.Tensor.from_dlpack(self.device, "no array")
        with self.assertRaises(moenn.UnsupportedError):
            moenn.Tensor.from_dlpack(self.device, np.zeros(2, np.complex64))

    @unittest.skipIf(torch is None, "torch is not installed")
    def test_torch_both_ways(self) -> None:
        for kind, dtype in ((torch.float32, moenn.DType.F32), (torch.bfloat16, moenn.DType.BF16),
                            (torch.int64, moenn.DType.I64)):
            tensor = moenn.Tensor(self.device, (2, 3), dtype)
            shared = torch.from_dlpack(tensor)
            self.assertEqual((shared.dtype, shared.data_ptr()), (kind, tensor.address))
            tensor.close()
            shared[1, 2] = 5
            back = moenn.Tensor.from_dlpack(self.device, shared)
            self.assertEqual((back.dtype, back.address), (dtype, shared.data_ptr()))
            del shared
            gc.collect()
            self.assertEqual(back.float32()[1, 2], 5)

    @unittest.skipIf(jax is None, "jax is not installed")
    def test_jax_both_ways(self) -> None:
        tensor = moenn.Tensor(self.device, (2, 3))
        tensor.assign(np.arange(6, dtype=np.float32).reshape(2, 3))
        shared = jax.dlpack.from_dlpack(tensor)
        self.assertEqual(shared.unsafe_buffer_pointer(), tensor.address)
        self.assertEqual(float(shared.sum()), 15)
        made = jax.numpy.arange(10, dtype=jax.numpy.float32) * 2
        back = moenn.Tensor.from_dlpack(self.device, made)
        self.assertEqual(back.address, made.unsafe_buffer_pointer())
        self.assertTrue(np.array_equal(back.copy(), 2 * np.arange(10)))

    def test_parameters_are_the_models_memory(self) -> None:
        name = self.model.parameter_names[0]
        parameter = self.model.parameter(name)
        before = self.model.forward([[1, 2, 3]])
        np.asarray(parameter)[1] = 0
        self.assertFalse(np.array_equal(before, self.model.forward([[1, 2, 3]])))
        self.assertEqual(self.model.parameter(name).address, parameter.address)


if __name__ == "__main__":
    unittest.main()
