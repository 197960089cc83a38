//! Tensors: elements in and out, views, foreign memory.
mod common;
use common::*;
use moenn::*;
use std::os::raw::c_void;
use std::ptr::NonNull;

#[test]
fn holds_elements_of_every_type() {
    fn round<T: Element + PartialEq + std::fmt::Debug>(values: [T; 4], bytes: usize) {
        let tensor = Tensor::zeros(&device(), T::DTYPE, &[2, 2]).unwrap();
        assert_eq!((tensor.dtype(), tensor.len(), T::DTYPE.bytes()), (T::DTYPE, 4, bytes));
        tensor.copy_in(&values).unwrap();
        let mut out = [values[3]; 4];
        tensor.copy_out(&mut out).unwrap();
        assert_eq!(out, values);
        assert_eq!(tensor.to_vec::<T>().unwrap(), values);
    }
    round([1f32, -2.5, 3.0, f32::MAX], 4);
    round([1f64, -2.5, 3.0, f64::MIN], 8);
    round([1i64, -2, i64::MIN, 4], 8);
    round([1i32, -2, i32::MIN, 4], 4);
    round([1i16, -2, i16::MIN, 4], 2);
    round([1i8, -2, i8::MIN, 4], 1);
    round([1u8, 2, 255, 4], 1);
}

#[test]
fn moves_bytes_of_types_that_rust_lacks() {
    for dtype in [DType::Bf16, DType::F16, DType::Bool] {
        let tensor = Tensor::zeros(&device(), dtype, &[3]).unwrap();
        let bytes: Vec<u8> = (0..tensor.len() * dtype.bytes()).map(|i| i as u8 % 2).collect();
        tensor.copy_in_bytes(&bytes).unwrap();
        let mut out = vec![9; bytes.len()];
        tensor.copy_out_bytes(&mut out).unwrap();
        assert_eq!(out, bytes);
        fails(tensor.to_vec::<f32>(), Status::Argument, "F32");
    }
}

#[test]
fn refuses_other_lengths_and_shapes() {
    let tensor = Tensor::zeros(&device(), DType::F32, &[3]).unwrap();
    fails(tensor.copy_in(&[1f32, 2.0]), Status::Argument, "8 bytes");
    fails(tensor.copy_out(&mut [1f32; 4]), Status::Argument, "16 bytes");
    fails(tensor.copy_in(&[1i32, 2, 3]), Status::Argument, "I32");
    fails(Tensor::zeros(&device(), DType::F32, &[-1]), Status::Argument, "shape[0] is -1");
    fails(Tensor::zeros(&device(), DType::F32, &[1; MAX_DIMS + 1]), Status::Argument, "ndim");
    fails(tensor.slice(1, 0, 1), Status::Argument, "dim is 1");
    fails(tensor.slice(0, 2, 4), Status::Argument, "dimension of 3");
}

#[test]
fn scalars_and_empty_tensors_are_tensors() {
    let scalar = Tensor::zeros(&device(), DType::F64, &[]).unwrap();
    assert_eq!((scalar.len(), scalar.shape(), scalar.strides()), (1, &[][..], &[][..]));
    let empty = Tensor::zeros(&device(), DType::F32, &[0, 3]).unwrap();
    assert!(empty.is_empty());
    assert_eq!(empty.to_vec::<f32>().unwrap(), []);
    empty.copy_in::<f32>(&[]).unwrap();
}

#[test]
fn slices_share_memory() {
    let tensor = Tensor::zeros(&device(), DType::I32, &[3, 4]).unwrap();
    tensor.copy_in(&(0..12).collect::<Vec<i32>>()).unwrap();
    let columns = tensor.slice(1, 1, 3).unwrap();
    assert_eq!((columns.shape(), columns.strides()), (&[3, 2][..], &[4, 1][..]));
    assert_eq!(columns.to_vec::<i32>().unwrap(), [1, 2, 5, 6, 9, 10]);
    let corner = columns.slice(0, 2, 3).unwrap();
    drop(columns);
    corner.copy_in(&[-9, -10]).unwrap();
    assert_eq!(tensor.to_vec::<i32>().unwrap()[8..], [8, -9, -10, 11]);
}

#[test]
fn wraps_a_slice() {
    let device = device();
    let mut data = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let address = data.as_ptr() as usize;
    let view = Tensor::wrap(&device, &mut data, &[2, 3]).unwrap();
    assert_eq!(view.as_ptr() as usize, address);
    view.slice(1, 0, 1).unwrap().copy_in(&[10f32, 40.0]).unwrap();
    drop(view);
    assert_eq!(data, [10.0, 2.0, 3.0, 40.0, 5.0, 6.0]);
    fails(Tensor::wrap(&device, &mut data, &[7]), Status::Argument, "[7]");
    fails(Tensor::wrap(&device, &mut data, &[-2, -3]), Status::Argument, "shape[0] is -2");
    fails(Tensor::wrap(&device, &mut data, &[1 << 40, 1 << 40]), Status::Argument, "6 elements");
}

#[test]
fn crosses_dlpack_without_a_copy() {
    let device = device();
    let tensor = Tensor::zeros(&device, DType::F32, &[4]).unwrap();
    let managed: NonNull<c_void> = tensor.to_dlpack().unwrap();
    let other = unsafe { Tensor::from_dlpack(&device, managed) }.unwrap();
    assert_eq!(other.as_ptr(), tensor.as_ptr());
    other.copy_in(&[1f32, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(tensor.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    drop(tensor);
    assert_eq!(other.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    drop(other);
    assert_eq!(
        device.memory().unwrap().current_bytes,
        self::device().memory().unwrap().current_bytes
    );
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    fails(Tensor::zeros(&device(), DType::U8, &[1 << 60]), Status::Memory, "");
}

#[test]
fn views_keep_the_storage_of_what_they_view() {
    let model = prepared();
    let gradient = model.gradient(HEAD).unwrap();
    model.unprepare().unwrap();
    assert!(gradient.to_vec::<f32>().unwrap().iter().all(|g| *g == 0.0));
    fails(model.gradient(HEAD), Status::State, "prepare");
}
