//! What both databases do alike is in `crate::testing`'s suites; here is what
//! needs no database.

use super::*;

#[test]
fn values_are_read_as_what_they_are() {
    assert_eq!(u16::from_value(Value::Integer(7)).unwrap(), 7);
    assert!(u16::from_value(Value::Integer(-1)).unwrap_err().to_string().contains("out of range"));
    assert!(String::from_value(Value::Null).unwrap_err().to_string().contains("null where text"));
    assert_eq!(Option::<bool>::from_value(Value::Null).unwrap(), None);
    assert_eq!(Option::<bool>::from_value(Value::Integer(2)).unwrap(), Some(true));
}

#[test]
fn parameters_come_as_arrays_or_by_the_macro() {
    let text = String::from("a");
    let mixed = params![1, text, None::<i64>, [1_u8, 2]];
    assert_eq!(
        (0..mixed.count()).map(|at| mixed.at(at)).collect::<Vec<_>>(),
        [Value::Integer(1), Value::Text("a"), Value::Null, Value::Blob(&[1, 2])]
    );
    assert_eq!([5_i64, 6].at(1), Value::Integer(6));
}
